"""`difference` by chunks: a leaf is its base but for the chunks that it holds itself.

A commit knows from the two lists of chunk digests which chunks differ, and reads no
data to find out; a reader takes each chunk from the object that holds it (`sources`)
to its place. `UPDATE` says the same of contents in general.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vcjax.errors import UpdateError
from vcjax.hashing import chunk_count, chunk_runs, chunk_slices
from vcjax.hashing.regions import Box, box_of, chunks_in, overlap
from vcjax.tree import itemsize, storage_dtype
from vcjax.updates.update import FIRST, MAX_DEPTH, Content, Index, Parts, Region

NAME = "difference"

MAX_SHARE = 0.5
"""A difference that holds more than this share of the chunks is not worth its base."""


@dataclass(frozen=True)
class BaseLeaf:
    """A stored leaf that a new one may be expressed relative to.

    Attributes:
        digest: leaf digest, hexadecimal.
        chunks: its chunk digests, hexadecimal, in C order of the grid.
        depth: 0 if it is dense, else 1 more than its own base's.
    """

    digest: str
    chunks: tuple[str, ...]
    depth: int


@dataclass(frozen=True)
class Difference:
    """How a leaf is expressed relative to a base.

    Attributes:
        base: leaf digest of the base, hexadecimal.
        own: indices of the chunks that the leaf holds itself, ascending.
        depth: 1 more than the base's.
    """

    base: str
    own: tuple[int, ...]
    depth: int


def choose_base(chunks: Sequence[str], candidates: Sequence[BaseLeaf]) -> Difference | None:
    """The cheapest difference of a leaf against any of some bases of the same grid.

    Args:
        chunks: the leaf's chunk digests, hexadecimal.
        candidates: for example the leaf's predecessor, and the dense leaf that
            the predecessor stands on: its turn comes when the chain is full.

    Returns:
        None if storing all chunks is better.
    """
    best = None
    for base in candidates:
        if base.depth >= MAX_DEPTH or len(base.chunks) != len(chunks):
            continue
        pairs = zip(chunks, base.chunks, strict=True)
        own = tuple(index for index, (new, old) in enumerate(pairs) if new != old)
        if len(own) <= MAX_SHARE * len(chunks) and (best is None or len(own) < len(best.own)):
            best = Difference(base.digest, own, base.depth + 1)
    return best


def sources(count: int, chain: Sequence[Sequence[int] | None]) -> list[int]:
    """Which object of a chain holds each chunk.

    Args:
        count: number of chunks.
        chain: for the leaf itself and then each base below it, the indices of the
            chunks that it holds, or None for all.

    Returns:
        For every chunk, the position in `chain` of the first object that holds it.

    Raises:
        ValueError: a chunk is in none of them.
    """
    held = [None if own is None else frozenset(own) for own in chain]
    found = []
    for index in range(count):
        at = next((at for at, own in enumerate(held) if own is None or index in own), None)
        if at is None:
            raise ValueError(f"chunk {index} is in no object of the chain")
        found.append(at)
    return found


class _Array(Protocol):
    """What has a dtype and a shape."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_pair(bases: Sequence[_Array], new: Sequence[_Array]) -> None:
    """Raises unless these are one base and one leaf, which may have a difference by chunks.

    Raises:
        UpdateError: they are more or less, or differ in dtype or shape.
    """
    if len(bases) != 1 or len(new) != 1:
        raise UpdateError(
            f"a difference is of one leaf to one base, not of {len(new)} to {len(bases)}",
            hint="store the leaves one by one",
        )
    [base], [leaf] = bases, new
    if (base.dtype, base.shape) != (leaf.dtype, leaf.shape):
        raise UpdateError(
            f"{leaf.dtype}{list(leaf.shape)} has no difference by chunks to "
            f"{base.dtype}{list(base.shape)}",
            hint="take a base of the same shape and dtype",
        )


@dataclass(frozen=True)
class ChunkDifference:
    """The update `difference`, of one leaf against one base of its shape and dtype."""

    name: str = NAME
    by_regions: bool = True

    def encode(self, bases: Sequence[Content], new: Sequence[Content]) -> Parts:
        """The new leaf, and which of its chunks are stored: those that differ.

        Raises:
            UpdateError: not one leaf and one base, or of another shape or dtype.
        """
        check_pair(bases, new)
        [base], [leaf] = bases, new
        width = itemsize(leaf.dtype)
        own = []
        for chunk in range(chunk_count(leaf.shape, width)):
            index = chunk_slices(leaf.shape, width, chunk, chunk)
            if leaf.read(index).tobytes() != base.read(index).tobytes():
                own.append(chunk)
        return Parts({NAME: leaf}, {"own": own})

    def apply(self, bases: Sequence[Content], parts: Parts, region: Region = FIRST) -> np.ndarray:
        """The region, chunk by chunk from the part or the base."""
        [base], part = bases, parts.arrays[NAME]
        whole = tuple(slice(0, length) for length in base.shape)
        box = box_of(whole if region.index is None else region.index, base.shape)
        result = np.empty([stop - start for start, stop in box], storage_dtype(base.dtype))
        own = frozenset(parts.parameters["own"])
        chunks = chunks_in(box, base.shape, itemsize(base.dtype))
        for source, held in (
            (part, [chunk for chunk in chunks if chunk in own]),
            (base, [chunk for chunk in chunks if chunk not in own]),
        ):
            for index, place in _common(base, held, box):
                result[place] = source.read(index)
        return result


def _common(base: Content, chunks: Sequence[int], box: Box) -> Iterator[tuple[Index, Index]]:
    """What some chunks have in common with a box: where it is in the leaf, and in the box."""
    width = itemsize(base.dtype)
    for first, last in chunk_runs(base.shape, width, chunks):
        run = box_of(chunk_slices(base.shape, width, first, last), base.shape)
        part = overlap(box, run)
        if part is not None:
            place = zip(part, box, strict=True)
            yield (
                tuple(slice(*span) for span in part),
                tuple(slice(start - at, stop - at) for (start, stop), (at, _) in place),
            )


UPDATE = ChunkDifference()
