"""mergekit's recipes, against the formulas of its documentation written in NumPy."""

import json

import ml_dtypes
import numpy as np
import pytest
import yaml

from vcjax import formats
from vcjax.cli import main
from vcjax.errors import FormatError, MergeError, StructureError
from vcjax.formats.sharded import INDEX, read_folder
from vcjax.mergekit.recipe import evaluate, parse_recipe, read_recipe
from vcjax.mergekit.recipe_run import open_recipe

pytestmark = pytest.mark.smoke

LAYERS, WIDTH = 3, 24
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PARTS = {"self_attn.q_proj": (WIDTH, WIDTH), "mlp.up_proj": (2 * WIDTH, WIDTH), "norm": (WIDTH,)}


def tensors(seed):
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (60, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{part}.weight": s for part, s in PARTS.items()}
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (60, WIDTH)}
    base = np.random.default_rng(99)
    return {
        name: (base.normal(size=shape) + bool(seed) * 0.1 * rng.normal(size=shape)).astype("f")
        for name, shape in shapes.items()
    }


@pytest.fixture
def models(tmp_path):
    """Three folders, base, a and b, and what is in them."""
    found = {}
    for seed, name in enumerate(("base", "a", "b")):
        found[name] = tensors(seed)
        (tmp_path / name).mkdir()
        formats.write(tmp_path / name / "model.safetensors", found[name], {"format": "pt"})
        config = {"model_type": "llama", "num_hidden_layers": LAYERS, "torch_dtype": "float32"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "tokenizer.json").write_text(f"{{'of': '{name}'}}")
    return found


def run(tmp_path, recipe, output="out"):
    text = yaml.safe_dump(recipe)
    open_recipe(parse_recipe(yaml.safe_load(text), text), tmp_path).write(tmp_path / output)
    return read_folder(tmp_path / output).tree


def layer_of(name):
    return int(name.split(".")[2]) if ".layers." in name else None


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_gradients_and_filters():
    assert evaluate([0, 1, 0], "x", 0.25) == 0.5
    assert evaluate([0, 10], "x", 1.0) == 10
    assert evaluate([{"filter": "mlp", "value": [0, 1]}, {"value": 7}], "a.mlp.b", 0.5) == 0.5
    assert evaluate([{"filter": "mlp", "value": 0}, {"filter": "*", "value": 7}], "a", 0.5) == 7
    assert evaluate([{"filter": "mlp", "value": 0}], "a", 0.5) is None
    assert evaluate([False, True], "a", 0.9) is False
    assert evaluate(3, "a", 0) == 3


def test_linear_with_a_gradient_per_model(tmp_path, models):
    found = run(
        tmp_path,
        {
            "merge_method": "linear",
            "models": [
                {"model": "a", "parameters": {"weight": [1, 3]}},
                {"model": "b", "parameters": {"weight": 0.5}},
            ],
        },
    )
    wanted = {}
    for name in found:
        t = (layer_of(name) or 0) / (LAYERS - 1)
        w = 1 + 2 * t
        wanted[name] = (w * models["a"][name] + 0.5 * models["b"][name]) / (w + 0.5)
    close(found, wanted)


def test_slerp_with_filters(tmp_path, models):
    rules = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.2}]
    found = run(
        tmp_path,
        {
            "merge_method": "slerp",
            "base_model": "a",
            "models": [{"model": "b"}, {"model": "a"}],
            "parameters": {"t": [*rules, {"value": 0.5}]},
        },
    )
    wanted = {}
    for name in found:
        t = 0.2 if "mlp" in name else 0.5
        if "self_attn" in name:
            layer = layer_of(name)
            assert layer is not None
            t = layer / (LAYERS - 1)
        x, y = (models[m][name].astype("d") for m in "ab")
        cosine = np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y)
        angle = np.arccos(cosine)
        mixed = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
        wanted[name] = (1 - t) * x + t * y if abs(cosine) > 0.9995 else mixed
    close(found, wanted)


def test_ties_with_a_density_per_model(tmp_path, models):
    densities, weights = {"a": 0.3, "b": 0.6}, {"a": 1.0, "b": 0.4}
    found = run(
        tmp_path,
        {
            "merge_method": "ties",
            "base_model": "base",
            "models": [
                {"model": m, "parameters": {"density": densities[m], "weight": weights[m]}}
                for m in "ab"
            ],
            "parameters": {"lambda": 0.9},
        },
    )
    wanted = {}
    for name, base in models["base"].items():
        votes, shares = [], []
        for m in "ab":
            delta = models[m][name] - base
            size = np.abs(delta).reshape(-1)
            keep = np.argsort(-size, kind="stable")[: int(densities[m] * size.size)]
            mask = np.zeros(size.size, bool)
            mask[keep] = True
            votes.append(weights[m] * np.where(mask.reshape(delta.shape), delta, 0))
        sign = np.where(sum(votes) >= 0, 1, -1)
        agree = [np.sign(v) == sign for v in votes]
        shares = sum(weights[m] * g for m, g in zip("ab", agree, strict=True))
        mixed = sum(np.where(g, v, 0) for v, g in zip(votes, agree, strict=True))
        wanted[name] = base + 0.9 * mixed / np.where(shares == 0, 1, shares)
    close(found, wanted)


def test_slices_are_stacked(tmp_path, models):
    found = run(
        tmp_path,
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 2]}]},
                {
                    "sources": [
                        {
                            "model": "b",
                            "layer_range": [1, 3],
                            "parameters": {"scale": [{"filter": "mlp", "value": 2}, {"value": 1}]},
                        }
                    ]
                },
            ],
            "dtype": "bfloat16",
        },
    )
    origin = [("a", 0), ("a", 1), ("b", 1), ("b", 2)]
    for name, tensor in found.items():
        model, source = ("a" if "embed" in name else "b"), name
        if (layer := layer_of(name)) is not None:
            model, number = origin[layer]
            source = name.replace(f".{layer}.", f".{number}.", 1)
        scale = 2 if "mlp" in name and model == "b" else 1
        np.testing.assert_array_equal(tensor, (scale * models[model][source]).astype(BFLOAT16))
    assert {layer_of(name) for name in found} == {None, 0, 1, 2, 3}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert config["torch_dtype"] == "bfloat16"


def test_slices_of_two_models_are_merged(tmp_path, models):
    sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [1, 3]}]
    found = run(tmp_path, {"merge_method": "linear", "slices": [{"sources": sources}]})
    part = "mlp.up_proj.weight"
    mean = (models["a"][f"model.layers.1.{part}"] + models["b"][f"model.layers.2.{part}"]) / 2
    np.testing.assert_allclose(found[f"model.layers.1.{part}"], mean, rtol=1e-6)


def test_the_command_writes_a_folder_that_others_can_load(tmp_path, models, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = """# a comment that is kept
merge_method: dare_ties
base_model: base
models:
  - model: a
    parameters: {density: 0.5, weight: 0.5}
  - model: b
    parameters: {density: 0.5, weight: 0.5}
tokenizer_source: b
"""
    (tmp_path / "recipe.yml").write_text(text)
    words = ["merge", "--recipe=recipe.yml", "--output=out", "--shard_size=0.001", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "vcjax.merge_files.1"
    assert {"out/config.json", "out/README.md"} < set(document["files"])
    card = (tmp_path / "out/README.md").read_text()
    assert text in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["a", "b", "base"]
    assert (tmp_path / "out/tokenizer.json").read_text() == "{'of': 'b'}"
    assert (tmp_path / "out/mergekit_config.yml").read_text() == text
    assert main(["merge", "--recipe=recipe.yml", "--output=again"]) == 0
    first, second = (read_folder(tmp_path / name).tree for name in ("out", "again"))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_shards_have_an_index(tmp_path, models):
    run_ = open_recipe(
        parse_recipe({"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}),
        tmp_path,
    )
    run_.write(tmp_path / "out", shard_bytes=8_000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["weight_map"].keys() == models["a"].keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in models["a"].values())
    from safetensors.numpy import load_file

    for name, file in index["weight_map"].items():
        mean = (models["a"][name] + models["b"][name]) / 2
        np.testing.assert_allclose(load_file(tmp_path / "out" / file)[name], mean, rtol=1e-6)


TWO = [{"model": "a"}, {"model": "b"}]


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        ([], FormatError, "no mapping"),
        ({"models": TWO}, FormatError, "names no merge_method"),
        ({"merge_method": "linear"}, FormatError, "either models or slices"),
        ({"merge_method": "linear", "models": TWO, "modules": {}}, FormatError, "'modules'"),
        (
            {"merge_method": "linear", "models": TWO, "tokenizer_source": "union"},
            *(FormatError, "union of tokenizers"),
        ),
        (
            {"merge_method": "linear", "models": [{"model": {"model": "a", "lora": "c"}}]},
            *(FormatError, "LoRA"),
        ),
        ({"merge_method": "linear", "models": [{"model": "c"}]}, FormatError, "no such folder"),
        ({"merge_method": "moe", "models": TWO}, MergeError, "'moe'"),
        ({"merge_method": "ties", "models": TWO}, MergeError, "needs a base model"),
        (
            {"merge_method": "slerp", "base_model": "a", "models": TWO},
            *(MergeError, "needs the parameter 't'"),
        ),
        (
            {
                "merge_method": "linear",
                "slices": [
                    {
                        "sources": [
                            {"model": "a", "layer_range": [0, 9]},
                            {"model": "b", "layer_range": [0, 3]},
                        ]
                    }
                ],
            },
            *(FormatError, "different numbers of layers"),
        ),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, models, recipe, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, recipe)


def test_models_of_other_shapes_are_refused(tmp_path, models):
    odd = {**models["b"], "lm_head.weight": np.zeros((61, WIDTH), "f")}
    formats.write(tmp_path / "b" / "model.safetensors", odd, {"format": "pt"})
    with pytest.raises(StructureError) as caught:
        run(tmp_path, {"merge_method": "linear", "models": TWO})
    assert list(caught.value.problems) == ["lm_head.weight: [60, 24], [61, 24]"]


def test_yaml_that_is_none_is_told(tmp_path):
    (tmp_path / "recipe.yml").write_text("models: [")
    with pytest.raises(FormatError, match="not a mergekit recipe"):
        read_recipe(tmp_path / "recipe.yml")
