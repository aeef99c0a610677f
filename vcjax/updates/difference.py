"""`difference` by chunks: a leaf is its base but for the chunks that it holds itself.

Which chunks differ is known from the two lists of chunk digests; no data are
read to find out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_DEPTH = 4
"""How many differences may stand on each other: a reader opens at most one more object."""

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
