"""Measuring many leaves: runs of chunks are read and compared by all cores, in bounded memory."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vcjax.diffing.batch import batches
from vcjax.diffing.contents import Content, Run, runs
from vcjax.diffing.modules import combined
from vcjax.diffing.patterns import Pattern
from vcjax.diffing.statistics import block_figures, finished
from vcjax.tree import LeafSpec, itemsize, storage_dtype

BATCH_BYTES = 32 * 1024 * 1024
"""How much of both sides together is prepared at once, leaves larger than this aside: while one
batch is compared, the next is prepared."""

AHEAD = 2
"""Threads beyond one per core: they read, and check digests, while others wait for XLA's."""


@dataclass(frozen=True)
class Pair:
    """Two contents of one leaf that are to be compared.

    Attributes:
        path: leaf path on the new side.
        old_path: leaf path on the old side.
        spec: dtype and shape of both.
        chunks: numbers of the chunks that differ, ascending; None for all.
    """

    path: str
    old_path: str
    spec: LeafSpec
    chunks: tuple[int, ...] | None = None


@dataclass
class _Measured:
    """What is known so far of a pair. `lock` guards the pattern, which runs share."""

    pair: Pair
    pattern: Pattern
    futures: list[Future[dict[str, Any]]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)


def measure(
    pairs: Sequence[Pair], old: Content, new: Content, limit: int = BATCH_BYTES
) -> dict[str, dict[str, Any]]:
    """The figures of pairs of leaves (`leaf_statistics`), by path on the new side.

    Chunks that are not named are not read: `OF_WHOLE_LEAVES` are then those of the
    chunks that were (`coverage` says how much of the leaf that is), while the size of
    the difference and the number of elements that changed are those of the leaf.

    Args:
        pairs: what to compare.
        old: where the old sides are read from.
        new: where the new ones are.
        limit: how many bytes of both sides are prepared at once.
    """
    by_path = {pair.path: pair for pair in pairs}
    found: dict[str, dict[str, Any]] = {}
    sizes = {path: 2 * nbytes(pair.spec) for path, pair in by_path.items()}
    under_way: list[_Measured] = []
    with workers() as submit:
        for batch in [*batches(sizes, limit), []]:
            members = [by_path[path] for path in batch]
            old.prepare([pair.old_path for pair in members])
            new.prepare([pair.path for pair in members])
            started = [_start(pair, old, new, submit) for pair in members]
            for one in under_way:  # while the next ones are at work
                blocks = [future.result() for future in one.futures]
                blocks = blocks or [block_figures(one.pair.spec.dtype, *_none(one.pair.spec))]
                found[one.pair.path] = finished(one.pair.spec.dtype, blocks, one.pattern)
            under_way = started
    return found


def nbytes(spec: LeafSpec) -> int:
    """Bytes of an array leaf."""
    return int(np.prod(spec.shape, dtype=np.int64)) * itemsize(spec.dtype)


@contextmanager
def workers() -> Iterator[Callable[..., Future[Any]]]:
    """A pool with a thread per core and `AHEAD` more; what has not begun is dropped on an error."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max_workers=(cores or 1) + AHEAD, thread_name_prefix="vcjax-diff")
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _none(spec: LeafSpec) -> tuple[Shaped[np.ndarray, "0"], Shaped[np.ndarray, "0"]]:
    nothing = np.empty(0, storage_dtype(spec.dtype))
    return nothing, nothing


def _start(pair: Pair, old: Content, new: Content, submit: Callable[..., Future[Any]]) -> _Measured:
    one = _Measured(pair, Pattern(pair.spec.shape))
    for run in runs(pair.spec, pair.chunks):
        one.futures.append(submit(_compare, one, run, old, new))
    return one


def _compare(one: _Measured, run: Run, old: Content, new: Content) -> dict[str, Any]:
    pair = one.pair
    before = old.read(pair.old_path, run.first, run.last)
    after = new.read(pair.path, run.first, run.last)
    figures = block_figures(pair.spec.dtype, before, after)
    with one.lock:
        one.pattern.add(run.start, before, after, figures)
    return figures


def joined(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The figures of all leaves together; None of none."""
    return combined(list(figures.values())) if figures else None
