"""Runs every method that mergekit has on the same small models in both, and compares the results.

    MERGEKIT_YAML=…/bin/mergekit-yaml python scripts/compare_mergekit.py --record

`MERGEKIT_YAML` names mergekit's executable, in an environment of its own. The models
are of float32: with weights of bfloat16 many task vectors have the same magnitude,
and which of those a threshold keeps is a matter of sorting.

That environment has `transformers` too: it loads the folders that both wrote, and the
logits of the two models are compared.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import benchmark
import numpy as np
from absl import app, flags
from suites.llama import config, shapes
from suites.measure import scratch
from suites.merge import CONTENDERS, command, environment

from vcjax.formats.sharded import ShardWriter, read_folder

FLAGS = flags.FLAGS
SIZES = 256, 64, 128, 3
"""Vocabulary, width, inner width, layers."""


def _models(count: int, **parameters: Any) -> list[dict[str, Any]]:
    """The first models of a recipe; a tuple has one value for each."""
    return [
        {
            "model": f"model{i}",
            "parameters": {k: v[i] if isinstance(v, tuple) else v for k, v in parameters.items()},
        }
        for i in range(count)
    ]


def _based(method: str, *models: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    fields = {"merge_method": method, "base_model": "base", "models": [*models]}
    return fields | {"parameters": parameters}


def _pair(method: str, **parameters: Any) -> dict[str, Any]:
    return _based(method, *_models(2), **parameters) | {"base_model": "model0"}


def _free(method: str, *models: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    return {"merge_method": method, "models": [*models], "parameters": parameters}


LOGITS = """
import json, sys, torch
from transformers import AutoModelForCausalLM

def logits(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"{folder}: {info}")
    return model(torch.arange(64)[None]).logits.detach()

found = []
for folder in sys.argv[1:]:
    ours, theirs = logits(f"{folder}/vcjax"), logits(f"{folder}/mergekit")
    found.append(float((ours - theirs).abs().max() / theirs.abs().max()))
print(json.dumps(found))
"""
"""What transformers makes of the results: the largest difference of logits, for each recipe."""

UNEVEN = (0.3, 0.5, 0.4)

RECIPES: dict[str, dict[str, Any]] = {
    "linear": _free("linear", *_models(3, weight=(1.0, 0.5, 0.25))),
    "linear, not normalised": _free("linear", *_models(3, weight=UNEVEN), normalize=False),
    "task arithmetic, gradient": _based(
        "task_arithmetic", *_models(3, weight=(0.5, 0.4, [0.1, 0.9])), **{"lambda": 0.8}
    ),
    "task arithmetic, normalised": _based(
        "task_arithmetic", *_models(3, weight=UNEVEN), normalize=True
    ),
    "TIES": _based("ties", *_models(3, weight=(1.0, 0.5, 0.7), density=0.5)),
    "TIES, a density per model": _based("ties", *_models(3, weight=1.0, density=(0.3, 0.5, 1.0))),
    "TIES, not normalised": _based(
        "ties", *_models(3, weight=UNEVEN, density=0.37), normalize=False, **{"lambda": 1.3}
    ),
    "DARE, density 1": _based("dare_linear", *_models(3, weight=UNEVEN, density=1.0)),
    "DARE-TIES, density 1": _based("dare_ties", *_models(3, weight=UNEVEN, density=1.0)),
    "DELLA, density 1": _based("della", *_models(3, weight=UNEVEN, density=1.0, epsilon=0.0)),
    "DELLA linear, density 1": _based(
        "della_linear", *_models(3, weight=UNEVEN, density=1.0, epsilon=0.0)
    ),
    "Breadcrumbs": _based("breadcrumbs", *_models(3, weight=0.5, density=0.7, gamma=0.05)),
    "Breadcrumbs-TIES": _based(
        "breadcrumbs_ties", *_models(3, weight=0.5, density=0.7, gamma=0.05)
    ),
    "SCE": _based("sce", *_models(3), select_topk=0.8),
    "SCE, few positions": _based("sce", *_models(3), select_topk=0.13),
    "Model Stock": _based("model_stock", *_models(3)),
    "RAM": _based("ram", *_models(3)),
    "RAM+": _based("ramplus_tl", *_models(3)),
    "SLERP, gradients and filters": _pair(
        "slerp",
        t=[
            {"filter": "self_attn", "value": [0, 0.5, 1]},
            {"filter": "mlp", "value": [1, 0.2]},
            {"value": 0.5},
        ],
    ),
    "NuSLERP": _free("nuslerp", *_models(2, weight=(1.0, 3.0))),
    "NuSLERP, task vectors by row": _based(
        "nuslerp", *_models(2, weight=(1.0, 3.0)), nuslerp_row_wise=True, nuslerp_flatten=False
    ),
    "multi-SLERP": _free("multislerp", *_models(3, weight=(1.0, 2.0, 1.0))),
    "Karcher": _free("karcher", *_models(3)),
    "Nearswap": _pair("nearswap", t=0.001),
    "Arcee Fusion": _pair("arcee_fusion"),
    "passthrough of slices": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "model0", "layer_range": [0, 2]}]},
            {"sources": [{"model": "model1", "layer_range": [1, 3]}]},
        ],
    },
}


def main(argv: list[str]) -> None:
    """Compares, prints the table, and with --record writes it into docs/benchmarks.md."""
    del argv
    program = shutil.which(os.environ.get("MERGEKIT_YAML", ""))
    if program is None:
        raise app.UsageError("set MERGEKIT_YAML to mergekit's executable mergekit-yaml")
    os.environ["MERGEKIT_YAML"] = os.path.abspath(program)
    rows = []
    with scratch("") as folder:
        write_models(folder)
        for number, (name, recipe) in enumerate(RECIPES.items()):
            worst, share = compare(folder, recipe, folder / f"result{number}")
            rows.append(f"| {name} | `{recipe['merge_method']}` | {worst:.1e} | {share:.2%} |")
            print(rows[-1], flush=True)
        found = differences_of_logits([folder / f"result{i}" for i in range(len(RECIPES))])
    rows = [f"{row} {logits:.1e} |" for row, logits in zip(rows, found, strict=True)]
    head = "| recipe | method | largest difference | elements beyond 1e-6 | logits |"
    table = "\n".join([head, "| --- | --- | ---: | ---: | ---: |", *rows])
    print(table)
    if FLAGS.record:
        benchmark.record("agreement", table)


def write_models(folder: Path) -> None:
    """A base and three models whose weights are a tenth to a third away from it."""
    specs = {name: (np.dtype(np.float32), shape) for name, shape in shapes(*SIZES).items()}
    base: dict[str, np.ndarray] = {}
    for seed, name in enumerate(("base", "model0", "model1", "model2")):
        rng = np.random.default_rng(seed)
        drawn = {k: rng.standard_normal(int(np.prod(s)), np.float32) for k, (_, s) in specs.items()}
        base = base or drawn
        writer = ShardWriter(folder / name, specs, {"format": "pt"}, key="made")
        for path, numbers in drawn.items():
            change = np.float32(0.1 * seed) * numbers
            writer.write(path, 0, base[path] + change if seed else numbers)
        writer.finish()
        settings = config(*SIZES) | {"torch_dtype": "float32"}
        (folder / name / "config.json").write_text(json.dumps(settings))


def differences_of_logits(results: list[Path]) -> list[float]:
    """Of the models in each folder, by the transformers of mergekit's environment."""
    python = Path(os.environ["MERGEKIT_YAML"]).parent / "python"
    words = [str(python), "-c", LOGITS, *map(str, results)]
    return json.loads(_ran(words, results[0].parent).splitlines()[-1])


def _ran(words: list[str], folder: Path) -> str:
    done = subprocess.run(
        words, cwd=folder, env=environment(words), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{words} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(folder: Path, recipe: dict[str, Any], output: Path) -> tuple[float, float]:
    """The largest difference, relative to the largest weight of its leaf, and how many differ.

    Args:
        folder: with the models.
        recipe: what both run.
        output: where the folder of each is left.
    """
    path = folder / "recipe.yml"
    text = json.dumps(recipe | {"dtype": "float32"})  # JSON is YAML too
    path.write_text(re.sub(r'"(base|model\d)"', rf'"{folder}/\1"', text))
    results = []
    for name in CONTENDERS:
        _ran(command(name, path, output / name), folder)
        results.append(read_folder(output / name).tree)
    ours, theirs = results
    if ours.keys() != theirs.keys():
        raise SystemExit(f"other tensors: {sorted(ours.keys() ^ theirs.keys())}")
    worst, beyond, size = 0.0, 0, 0
    for name in ours:
        a, b = (np.asarray(result[name], np.float64) for result in (ours, theirs))
        difference = np.abs(a - b) / np.max(np.abs(b))
        if not np.isfinite(difference).all():
            raise SystemExit(f"{name}: not finite")
        worst = max(worst, float(difference.max()))
        beyond += int(np.sum(difference > 1e-6))
        size += a.size
    return worst, beyond / size


if __name__ == "__main__":
    app.run(main)
