"""The chunk grid: how a leaf is cut, as a function of shape and item size alone."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

CHUNK_BYTES = 4 * 1024 * 1024
"""The size that chunks aim at, in bytes. Rounding to whole rows keeps them below twice this."""


@lru_cache(maxsize=4096)
def _cut_axis(shape: tuple[int, ...], itemsize: int) -> int:
    """The first axis of which one row fits in a chunk; it is the one that is cut."""
    for axis in range(len(shape)):
        if itemsize * math.prod(shape[axis + 1 :]) <= CHUNK_BYTES:
            return axis
    return 0


@lru_cache(maxsize=4096)
def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The shape of the chunks of a leaf.

    The first axis of which one row fits in `CHUNK_BYTES` is cut into
    n = ⌈bytes / CHUNK_BYTES⌉ nearly equal parts of ⌈rows / n⌉ rows; axes before
    it are cut into single rows, axes after it are whole. A chunk is therefore a
    contiguous range of the C-order bytes. Nearly equal parts matter: zarr pads
    edge chunks to full size, and a fixed row count wasted 18 % of the disk on a
    GPT-2-sized tree.

    Args:
        shape: of the leaf. An axis of length 0 counts as one row, since zarr
            knows no chunks of length 0.
        itemsize: bytes per element in the canonical form.
    """
    if not shape:
        return ()
    axis = _cut_axis(shape, itemsize)
    parts = max(1, math.ceil(itemsize * math.prod(shape[axis:]) / CHUNK_BYTES))
    rows = max(1, math.ceil(shape[axis] / parts))
    return (1,) * axis + (rows,) + tuple(max(1, length) for length in shape[axis + 1 :])


def chunk_count(shape: tuple[int, ...], itemsize: int) -> int:
    """How many chunks a leaf has: 0 for an empty leaf, 1 for a scalar."""
    return math.prod(chunk_grid(shape, itemsize))


def chunk_grid(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """How many chunks a leaf has along each axis."""
    pairs = zip(shape, chunk_shape(shape, itemsize), strict=True)
    return tuple(-(-length // part) for length, part in pairs)


def chunk_slices(shape: tuple[int, ...], itemsize: int, first: int, last: int) -> tuple[slice, ...]:
    """What chunks `first` … `last` cover of a leaf, as an index of the array.

    They must lie in a row along the axis that is cut (see `chunk_runs`).
    """
    grid, chunks = chunk_grid(shape, itemsize), chunk_shape(shape, itemsize)
    begin, end = (_unravel(index, grid) for index in (first, last))
    return tuple(
        slice(a * part, min((b + 1) * part, length))
        for a, b, part, length in zip(begin, end, chunks, shape, strict=True)
    )


def _unravel(index: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    position = []
    for count in reversed(grid):
        index, remainder = divmod(index, count)
        position.append(remainder)
    return tuple(reversed(position))


def chunk_runs(
    shape: tuple[int, ...], itemsize: int, indices: Sequence[int], most: int | None = None
) -> Iterator[tuple[int, int]]:
    """Some chunks, ascending, as (first, last) of runs that `chunk_slices` takes.

    Args:
        most: how many chunks a run may have; None for any number.
    """
    along = chunk_grid(shape, itemsize)[_cut_axis(shape, itemsize)] if shape else 1
    start = previous = None
    for index in indices:
        if start is None or previous is None:
            start = index
        elif index != previous + 1 or index % along == 0 or index - start == most:
            yield start, previous
            start = index
        previous = index
    if start is not None and previous is not None:
        yield start, previous


def chunk_ranges(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """The byte ranges (start, stop) of the chunks, in C order of the grid."""
    total = itemsize * math.prod(shape)
    if total == 0:
        return
    axis = _cut_axis(shape, itemsize)
    block = itemsize * math.prod(shape[axis:])
    step = itemsize * math.prod(chunk_shape(shape, itemsize)[axis:])
    for start in range(0, total, block):
        for offset in range(0, block, step):
            yield start + offset, start + min(offset + step, block)
