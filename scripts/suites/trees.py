"""Trees of real shapes for the benchmarks."""

import jax
import jax.numpy as jnp
import numpy as np

LAYERS = 12
WIDTH = 768


def gpt2_small(seed: int = 0) -> dict:
    """The parameters of GPT-2 small: 148 float32 leaves, 498 MB, normally distributed."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(0.02))

    tree: dict = {
        "wte": normal(50257, WIDTH),
        "wpe": normal(1024, WIDTH),
        "ln_f": {"scale": normal(WIDTH), "bias": normal(WIDTH)},
    }
    for layer in range(LAYERS):
        tree[f"h_{layer:02d}"] = {
            "ln_1": {"scale": normal(WIDTH), "bias": normal(WIDTH)},
            "attn": {
                "qkv": {"kernel": normal(WIDTH, 3 * WIDTH), "bias": normal(3 * WIDTH)},
                "out": {"kernel": normal(WIDTH, WIDTH), "bias": normal(WIDTH)},
            },
            "ln_2": {"scale": normal(WIDTH), "bias": normal(WIDTH)},
            "mlp": {
                "up": {"kernel": normal(WIDTH, 4 * WIDTH), "bias": normal(4 * WIDTH)},
                "down": {"kernel": normal(4 * WIDTH, WIDTH), "bias": normal(WIDTH)},
            },
        }
    return jax.block_until_ready(tree)


def with_layer_changed(tree: dict, layer: int) -> dict:
    """The same tree with every leaf of one layer moved by a training-sized step."""
    name = f"h_{layer:02d}"
    changed = jax.tree.map(lambda leaf: leaf * 1.001, tree[name])
    return jax.block_until_ready({**tree, name: changed})


def small(leaves: int = 148, seed: int = 0) -> dict:
    """A state of about 1 MB: as many float32 leaves of 7 KB."""
    rng = np.random.default_rng(seed)
    return {
        f"leaf_{i:03d}": jnp.asarray(rng.standard_normal(1750, np.float32)) for i in range(leaves)
    }
