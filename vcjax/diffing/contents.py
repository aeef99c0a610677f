"""Where a diff reads contents from: piece by piece, whatever holds them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Shaped

from vcjax import tree
from vcjax.hashing import chunk_count, chunk_ranges, chunk_runs, chunk_shape, chunk_slices

RUN_BYTES = 4 * 1024 * 1024
"""How much of a leaf is read at once: chunks that follow each other, at least one. No more, as
one that is stored uncompressed can be used where it lies."""


class Content(Protocol):
    """The array leaves of one side of a diff: a commit, a file, or a tree in memory.

    Attributes:
        lazy: whether chunks that are equal on both sides are better not read.
    """

    lazy: bool

    def prepare(self, paths: Sequence[str]) -> None:
        """Says which leaves will be read next, so that small ones can be read together.

        What was prepared before the last time may be forgotten.
        """
        ...

    def read(self, path: str, first: int, last: int) -> Shaped[np.ndarray, " elements"]:
        """Chunks `first` … `last` of a leaf as one canonical host array.

        They lie in a row along the axis that is cut (`vcjax.hashing.chunk_runs`). May be
        called from several threads at once.
        """
        ...


@dataclass(frozen=True)
class Run:
    """Some chunks of a leaf that follow each other.

    Attributes:
        first: number of the first.
        last: number of the last.
        start: place of their first element in the leaf, in C order.
        stop: place behind their last one.
    """

    first: int
    last: int
    start: int
    stop: int


def runs(spec: tree.LeafSpec, chunks: Sequence[int] | None = None) -> Iterator[Run]:
    """The chunks of a leaf, or some of them, in runs of `RUN_BYTES`.

    Args:
        spec: of an array leaf.
        chunks: numbers of the chunks that are wanted, ascending; None for all.
    """
    shape, width = spec.shape, tree.itemsize(spec.dtype)
    if not shape:  # nothing that could be cut
        yield Run(0, 0, 0, 1)
        return
    spans = list(chunk_ranges(shape, width))
    wanted = range(chunk_count(shape, width)) if chunks is None else chunks
    most = max(1, RUN_BYTES // (width * max(1, math.prod(chunk_shape(shape, width)))))
    for first, last in chunk_runs(shape, width, wanted):
        for start in range(first, last + 1, most):
            end = min(last, start + most - 1)
            yield Run(start, end, spans[start][0] // width, spans[end][1] // width)


def aligned(size: int, dtype: np.dtype) -> Shaped[np.ndarray, " size"]:
    """Uninitialised memory that JAX on a CPU can use in place: it asks for 64 bytes."""
    memory = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * dtype.itemsize].view(dtype)


def flat(
    content: Content, path: str, spec: tree.LeafSpec
) -> Iterator[tuple[int, Shaped[np.ndarray, " elements"]]]:
    """A leaf from its beginning to its end: (place of the first element, elements)."""
    for run in runs(spec):
        yield run.start, content.read(path, run.first, run.last)


def whole(content: Content, path: str, spec: tree.LeafSpec) -> Shaped[np.ndarray, "..."]:
    """A whole leaf, canonical."""
    count = chunk_count(spec.shape, tree.itemsize(spec.dtype))
    found = np.empty(math.prod(spec.shape), tree.storage_dtype(spec.dtype))
    if count:
        for start, part in flat(content, path, spec):
            found[start : start + part.size] = part
    return found.reshape(spec.shape)


class TreeContent:
    """The array leaves of a tree in memory; those on an accelerator are fetched in runs.

    Args:
        leaves: by leaf path.
    """

    lazy = False

    def __init__(self, leaves: Mapping[str, tree.Leaf]):
        self._leaves = leaves

    def prepare(self, paths: Sequence[str]) -> None:
        """Nothing to do: all is in memory."""

    def read(self, path: str, first: int, last: int) -> Shaped[np.ndarray, " elements"]:
        """See `Content`."""
        leaf = self._leaves[path]
        shape, width = leaf.spec.shape, tree.itemsize(leaf.spec.dtype)
        if tree.is_remote(leaf.data):
            return tree.canonical(leaf, chunk_slices(shape, width, first, last)).reshape(-1)
        spans = list(chunk_ranges(shape, width))
        start, stop = spans[first][0] // width, spans[last][1] // width
        return tree.canonical(leaf).reshape(-1)[start:stop]
