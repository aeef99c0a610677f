"""`--suite=device`: arrays that live on whatever accelerator is present (else on the CPU).

The peer is Orbax, saving the same arrays from the same device. Rates compare
digesting in device memory with transferring the bytes to the host.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from suites import device_merge, save
from suites.measure import measured, scratch
from suites.trees import gpt2_small, with_layer_changed
from vcjax import hashing

CONTENDERS = ("vcjax", "orbax")

CASES = {
    "full save": "GPT-2 small, 498 MB in 148 leaves, nothing stored before",
    "unchanged save": "the same arrays again",
    "one layer changed": "one of twelve layers changed",
    "digests": (
        "of all leaves by the JAX kernel; peak: device memory beyond the arrays, where the "
        "device counts it"
    ),
    "transfer": "of all leaves to the host, for comparison with digests",
    "host digests": "of all leaves by the SIMD package, transfer included",
    "compilation": "of all programs that digests needs, the first time in a process",
    **device_merge.CASES,
}

TARGETS = {("one layer changed", "wall"): 0.1}

UNITS = {
    "wall": ("s", 1.0),
    "disk": ("MB", 1e-6),
    "rate": ("GB/s", 1e-9),
    "peak": ("MB", 1e-6),
    "share": ("of copy", 1.0),
}


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All cases for one contender, in this process."""
    tree = gpt2_small()
    cases = _rates(tree) if contender == "vcjax" else {}  # first: the peak of memory is for ever
    make = {"vcjax": save.Vcjax, "orbax": save.Orbax}[contender]
    if contender == "vcjax":
        cases |= device_merge.run()
    return cases | _saves(make, tree, parent)


def _saves(make: Any, tree: dict, parent: str) -> dict[str, dict[str, float]]:
    cases = {}
    changed = with_layer_changed(tree, 5)
    with scratch(parent) as folder:
        _warm_up(make, folder / "warm", tree, changed)
        subject = make(folder / "large")
        for step, (case, version) in enumerate(
            (("full save", tree), ("unchanged save", tree), ("one layer changed", changed))
        ):
            arrays = _fresh(version)
            cost, _ = measured(lambda s=step, a=arrays: subject.save(s, a), folder)
            cases[case] = {"wall": cost.wall, "disk": cost.disk}
        subject.close()
    return cases


def _warm_up(make: Any, folder: Path, tree: dict, changed: dict) -> None:
    subject = make(folder)
    subject.save(0, tree)
    subject.save(1, changed)
    subject.close()


def _fresh(tree: dict) -> dict:
    """New arrays of the same content: a JAX array keeps the copy it once made for the host."""
    return jax.block_until_ready(jax.tree.map(jnp.copy, tree))


def _rates(tree: dict) -> dict[str, dict[str, float]]:
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    compilation = _time(lambda: hashing.tree_digests(tree, backend="device"))
    digests = _time(lambda: hashing.tree_digests(tree, backend="device"))
    held, peak = _allocated("bytes_in_use"), _allocated("peak_bytes_in_use")
    copies = [_fresh(tree) for _ in range(2)]
    transfer = _time(lambda: jax.tree.map(np.asarray, copies[0]))
    host = _time(lambda: hashing.tree_digests(copies[1], backend="host"))
    memory = {} if held is None or peak is None else {"peak": float(peak - held)}
    return {
        "digests": {"wall": digests, "rate": nbytes / digests, **memory},
        "transfer": {"wall": transfer, "rate": nbytes / transfer},
        "host digests": {"wall": host, "rate": nbytes / host},
        "compilation": {"wall": max(0.0, compilation - digests)},
    }


def _time(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _allocated(figure: str) -> int | None:
    """A figure of the device's allocator in bytes; CPU devices keep none."""
    statistics = jax.devices()[0].memory_stats()
    return statistics[figure] if statistics else None
