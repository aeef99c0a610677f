"""The merging cases of `--suite=device`: models that lie in device memory, merged in one call.

*rate* counts every byte of the models, the base and the result once; *of copy* is that
rate as a share of what a copy within the same memory reaches, which reads and writes
every byte once.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vcjax import merging

ELEMENTS = {"cpu": 1 << 20}
"""Of a leaf, by platform; a model has four."""

LARGE = 1 << 26
LEAVES = 4

METHODS: dict[str, tuple[merging.MergeMethod, int, bool, float]] = {
    "merge: linear, N = 4": (merging.linear(), 4, False, 0.7),
    "merge: task arithmetic, N = 4": (merging.task_arithmetic(0.4), 4, True, 0.7),
    "merge: DARE-TIES, N = 4": (merging.dare_ties(0.5), 4, True, 0.7),
    "merge: TIES, N = 4": (merging.ties(0.2), 4, True, 0.35),
    "merge: linear, N = 32": (merging.linear(), 32, False, 0.7),
    "merge: TIES, N = 32": (merging.ties(0.2), 32, True, 0.35),
}
"""{case: method, models, whether there is a base, wanted share of a copy's rate}."""

CASES = {
    "copy": "of a model within device memory",
    **{
        name: f"bfloat16, to reach {share:.0%} of the copy's rate on a GPU"
        for name, (*_, share) in METHODS.items()
    },
}


def run() -> dict[str, dict[str, float]]:
    """All cases."""
    platform = jax.default_backend()
    size = ELEMENTS.get(platform, LARGE)
    model = _model(size, 0)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    copy = 2 * nbytes / _best(jax.jit(lambda tree: jax.tree.map(jnp.copy, tree)), model)
    cases = {"copy": {"rate": copy}}
    for name, (method, count, based, _) in METHODS.items():
        models = [_model(size, i + 1) for i in range(count)]
        base = model if based else None
        key = jax.random.key(0) if method.random else None

        def merge(
            models: list[Any], base: Any, method: merging.MergeMethod = method, key: Any = key
        ) -> Any:
            return merging.merge(models, method, base=base, key=key)

        wall = _best(merge, models, base)
        rate = (count + based + 1) * nbytes / wall
        cases[name] = {"wall": wall, "rate": rate, "share": rate / copy}
    return cases


def _model(size: int, seed: int) -> dict[str, jax.Array]:
    """Normally distributed leaves: a base, or with a seed a fine-tune of it."""
    return {f"w{number}": _leaf(number, seed, size) for number in range(LEAVES)}


@functools.partial(jax.jit, static_argnames="size")
def _leaf(number: Any, seed: Any, size: int) -> jax.Array:
    shape = size // 4096, 4096
    base = jax.random.normal(jax.random.key(number), shape)
    change = jax.random.normal(jax.random.key(1000 * seed + number), shape)
    return (base + jnp.where(seed > 0, 0.02, 0) * change).astype(jnp.bfloat16)


def _best(action: Callable[..., Any], *given: Any) -> float:
    """Seconds of the quickest of five runs, compiled before."""
    jax.block_until_ready(action(*given))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(action(*given))
        times.append(time.perf_counter() - start)
    return min(times)
