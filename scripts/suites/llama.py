"""Synthetic models of Llama's shapes, as folders of safetensors in Hugging Face naming."""

import functools
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from vcjax.formats.sharded import ShardWriter

VOCABULARY, WIDTH, INNER, LAYERS = 32000, 1024, 2816, 14
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def config(vocabulary: int, width: int, inner: int, layers: int) -> dict:
    """What `config.json` says of a model of these shapes."""
    heads = max(1, width // 64)
    return CONFIG | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def shapes(vocabulary: int, width: int, inner: int, layers: int) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape}."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found[f"{prefix}input_layernorm.weight"] = (width,)
        for name in "qkvo":
            found[f"{prefix}self_attn.{name}_proj.weight"] = (width, width)
        found[f"{prefix}post_attention_layernorm.weight"] = (width,)
        for name in ("gate", "up"):
            found[f"{prefix}mlp.{name}_proj.weight"] = (inner, width)
        found[f"{prefix}mlp.down_proj.weight"] = (width, inner)
    found["model.norm.weight"] = (width,)
    found["lm_head.weight"] = (vocabulary, width)
    return found


def write_models(
    parent: Path,
    count: int,
    vocabulary: int = VOCABULARY,
    width: int = WIDTH,
    inner: int = INNER,
    layers: int = LAYERS,
) -> list[Path]:
    """A base and so many models that were fine-tuned from it, 491 MB each by default.

    Task vectors have 2 % of the size of the weights.

    Returns:
        Their folders, the base's first.
    """
    dimensions = vocabulary, width, inner, layers
    specs = {name: (BFLOAT16, shape) for name, shape in shapes(*dimensions).items()}
    folders = [parent / name for name in ("base", *(f"model{i}" for i in range(count)))]
    for number, folder in enumerate(folders):
        writer = ShardWriter(folder, specs, {"format": "pt"}, key="made")
        for at, (name, (_, shape)) in enumerate(specs.items()):
            writer.write(name, 0, _tensor(at, number, int(np.prod(shape))))
        writer.finish()
        (folder / "config.json").write_text(json.dumps(config(*dimensions), indent=2))
    return folders


BLOCK = 1 << 22
"""So many numbers are drawn per model; a tensor repeats them, rotated by a prime of its own."""


@functools.cache
def _block(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(BLOCK, np.float32)


def _tensor(at: int, number: int, size: int) -> np.ndarray:
    block = np.roll(_block(0), at * 104729)
    if number:
        block = block + 0.02 * np.roll(_block(number), at * 104729)
    return np.resize((block * np.float32(0.02)).astype(BFLOAT16), size)
