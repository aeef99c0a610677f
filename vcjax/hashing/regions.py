"""Which device digests which chunks of a sharded leaf: plain geometry, no arrays."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vcjax.hashing import grid

REGION_BYTES = 16 * 1024 * 1024
"""Most bytes that are cut out of a leaf at once; bounds the memory that copies take."""

Box = tuple[tuple[int, int], ...]
"""A part of an array: (start, stop) along each axis."""


@dataclass(frozen=True, slots=True)
class Region:
    """Some neighbouring chunks of a leaf, which together are a contiguous range of its bytes.

    Attributes:
        first: number of the first chunk.
        chunks: how many.
        box: the part of the leaf that they are.
        holders: the shards that hold all of it, by their place in the list of shards.
    """

    first: int
    chunks: int
    box: Box
    holders: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part of the leaf."""
        return tuple(stop - start for start, stop in self.box)


def box_of(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    """The part of an array that an index is, as shardings give it."""
    return tuple(part.indices(length)[:2] for part, length in zip(index, shape, strict=True))


def overlap(a: Box, b: Box) -> Box | None:
    """What two boxes have in common; None if that is nothing."""
    common = tuple((max(p[0], q[0]), min(p[1], q[1])) for p, q in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def _holds(shard: Box, box: Box) -> bool:
    return all(s[0] <= b[0] and b[1] <= s[1] for s, b in zip(shard, box, strict=True))


def chunk_box(number: int, shape: tuple[int, ...], itemsize: int) -> Box:
    """The part of a leaf that a chunk is."""
    return _chunk_box(number, shape, grid.chunk_shape(shape, itemsize))


def _chunk_box(number: int, shape: Sequence[int], chunk: Sequence[int]) -> Box:
    spans = []
    for length, part in zip(reversed(shape), reversed(chunk), strict=True):
        number, index = divmod(number, -(-length // part))
        spans.append((index * part, min(length, (index + 1) * part)))
    return tuple(reversed(spans))


def chunks_in(box: Box, shape: tuple[int, ...], itemsize: int) -> list[int]:
    """The numbers, ascending, of the chunks that a part of a leaf lies in."""
    chunk = grid.chunk_shape(shape, itemsize)
    numbers = [0]
    spans = zip(box, chunk, grid.chunk_grid(shape, itemsize), strict=True)
    for (start, stop), part, count in spans:
        along = range(start // part, -(-stop // part)) if start < stop else range(0)
        numbers = [number * count + index for number in numbers for index in along]
    return numbers


def chunk_boxes(shape: tuple[int, ...], itemsize: int) -> Iterator[Box]:
    """A leaf in neighbouring chunks of at most `REGION_BYTES`, or single ones, in order."""
    most = max(1, REGION_BYTES // (itemsize * math.prod(grid.chunk_shape(shape, itemsize))))
    numbers = range(grid.chunk_count(shape, itemsize))
    for first, last in grid.chunk_runs(shape, itemsize, numbers, most):
        yield box_of(grid.chunk_slices(shape, itemsize, first, last), shape)


def _joined(a: Box, b: Box) -> Box | None:
    """Two boxes as one, if `b` follows `a` along one axis and the two agree in all others."""
    differing = [axis for axis in range(len(a)) if a[axis] != b[axis]]
    if len(differing) != 1 or a[differing[0]][1] != b[differing[0]][0]:
        return None
    axis = differing[0]
    return (*a[:axis], (a[axis][0], b[axis][1]), *a[axis + 1 :])


@lru_cache(maxsize=4096)
def regions(shape: tuple[int, ...], itemsize: int, shards: tuple[Box, ...]) -> tuple[Region, ...]:
    """The chunks of a leaf in regions, as large as possible, each within a shard where it can be.

    Args:
        shape: of the leaf.
        itemsize: bytes per element in canonical bytes.
        shards: the parts of the leaf that devices hold; together all of it.
    """
    chunk = grid.chunk_shape(shape, itemsize)
    limit = max(1, REGION_BYTES // (itemsize * math.prod(chunk)))
    found: list[Region] = []
    for number in range(grid.chunk_count(shape, itemsize)):
        box = _chunk_box(number, shape, chunk)
        holders = tuple(i for i, shard in enumerate(shards) if _holds(shard, box))
        last = found[-1] if found else None
        if last is not None and last.chunks < limit and last.holders == holders:
            joined = _joined(last.box, box)
            # Only full chunks may come before others in a region.
            if joined is not None:
                found[-1] = Region(last.first, last.chunks + 1, joined, holders)
                continue
        found.append(Region(number, 1, box, holders))
    return tuple(found)
