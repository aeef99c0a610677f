"""`--suite=hash`: digesting trees in host memory and arrays on a device.

The peer is the `blake3` package with all threads over the same buffers; it
computes one digest for each leaf and knows no chunks. Device cases compare the
JAX kernel with copying the same array within device memory.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import blake3
import jax
import jax.numpy as jnp
import numpy as np

from suites.trees import gpt2_small, small
from vcjax import hashing

CONTENDERS = ("vcjax", "blake3", "vcjax, 1 thread", "blake3, 1 thread", "sha256", "xxh3", "copy")

CASES = {
    "large leaves": "GPT-2 small in host memory, 498 MB in 148 leaves",
    "small leaves": "1 MB in 148 leaves of 7 KB in host memory",
    "device": (
        "16 MiB, on an accelerator 1 GiB, in device memory: the JAX kernel against a copy "
        "within that memory, which reads and writes every byte once"
    ),
}

TARGETS = {("large leaves", "rate"): 0.9}

UNITS = {"rate": ("GB/s", 1e-9)}

REPEATS = 20


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All cases for one contender, in this process."""
    del parent  # nothing is written
    if contender == "copy":
        return {"device": _device(_copied)}
    digest = _HOST.get(contender)
    if contender == "xxh3":
        digest = _xxh3()
    if digest is None:
        return {}
    cases: dict[str, dict[str, float]] = {}
    for case, tree in (("large leaves", gpt2_small()), ("small leaves", small())):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        nbytes = sum(leaf.nbytes for leaf in leaves)
        cases[case] = _rate(lambda leaves=leaves: digest(leaves), nbytes)
    if contender == "vcjax":
        cases["device"] = _device(_digested)
    return cases


def _rate(action: Callable[[], Any], nbytes: int) -> dict[str, float]:
    """Bytes per second, the best of some runs after one to warm up."""
    action()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return {"rate": nbytes / min(times)}


def _bytes(leaves: Iterable[np.ndarray]) -> Iterable[memoryview]:
    return (leaf.reshape(-1).view(np.uint8).data for leaf in leaves)


def _vcjax(leaves: list[np.ndarray]) -> None:
    for _ in hashing.digest_arrays((leaf.dtype.name, leaf) for leaf in leaves):
        pass


def _vcjax_one_thread(leaves: list[np.ndarray]) -> None:
    for leaf in leaves:
        hashing.digest_array(leaf.dtype.name, leaf)


def _blake3(leaves: list[np.ndarray]) -> None:
    for view in _bytes(leaves):
        blake3.blake3(view, max_threads=blake3.blake3.AUTO).digest()


def _blake3_one_thread(leaves: list[np.ndarray]) -> None:
    for view in _bytes(leaves):
        blake3.blake3(view).digest()


def _sha256(leaves: list[np.ndarray]) -> None:
    for view in _bytes(leaves):
        hashlib.sha256(view).digest()


_HOST: dict[str, Callable[[list[np.ndarray]], None]] = {
    "vcjax": _vcjax,
    "blake3": _blake3,
    "vcjax, 1 thread": _vcjax_one_thread,
    "blake3, 1 thread": _blake3_one_thread,
    "sha256": _sha256,
}


def _xxh3() -> Callable[[list[np.ndarray]], None] | None:
    try:
        import xxhash
    except ModuleNotFoundError:
        return None

    def digest(leaves: list[np.ndarray]) -> None:
        for view in _bytes(leaves):
            xxhash.xxh3_128_digest(view)

    return digest


def _device(action: Callable[[jax.Array], Any]) -> dict[str, float]:
    words = (16 if jax.default_backend() == "cpu" else 1024) * 1024 * 1024 // 4
    array = jax.block_until_ready(jax.random.bits(jax.random.key(0), (words,), jnp.uint32))
    return _rate(lambda: action(array), array.nbytes)


def _digested(array: jax.Array) -> None:
    hashing.tree_digests([array], backend="device")


def _copied(array: jax.Array) -> None:
    jax.block_until_ready(jnp.copy(array))
