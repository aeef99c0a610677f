"""Which process owns which chunks of a leaf that several hold: plain geometry, no arrays.

Every process computes the same answer from the shardings alone, which all of
them know, so nothing has to be said about it.
"""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from vcjax.hashing.regions import Box, Region, overlap, regions


@dataclass(frozen=True, slots=True)
class Transfer:
    """A part of a leaf that the owner of its chunks lacks.

    Attributes:
        source: the process that sends it.
        target: the owner.
        box: the part of the leaf; one shard of `source` holds all of it.
    """

    source: int
    target: int
    box: Box


@dataclass(frozen=True, slots=True)
class Share:
    """Neighbouring chunks of a leaf with one owner, who digests and writes them.

    Attributes:
        region: the chunks.
        owner: a process.
        transfers: what the owner has to be sent; nothing where it holds the region.
    """

    region: Region
    owner: int
    transfers: tuple[Transfer, ...]


def shares(
    shape: tuple[int, ...],
    itemsize: int,
    holders: Mapping[Box, Sequence[int]],
    load: MutableMapping[int, int],
    sole: int | None = None,
) -> list[Share]:
    """Shares a leaf out, so that each process owns about as many bytes.

    A region that some processes hold whole goes to the least busy of them: what
    is replicated is digested and written once, by all of them together. A region
    that lies across shards goes to who holds the most of it, and only what that
    process lacks is sent.

    Args:
        shape: of the leaf.
        itemsize: bytes per element in canonical bytes.
        holders: {part of the leaf that a device holds: the processes of such devices}.
        load: bytes that each process owns of other leaves; is added to.
        sole: the process that owns all of it, whoever holds it.
    """
    boxes = tuple(holders)
    found = []
    for region in regions(shape, itemsize, boxes):
        whole = [process for at in region.holders for process in holders[boxes[at]]]
        parts = {}
        if not whole or (sole is not None and sole not in whole):
            common = ((box, overlap(box, region.box)) for box in boxes)
            parts = {box: part for box, part in common if part is not None}
        if sole is not None:
            owner = sole
        elif whole:
            owner = min(whole, key=lambda process: (load[process], process))
        else:
            owner = _largest_holder(parts, holders, load)
        load[owner] += itemsize * math.prod(region.shape)
        sent = []
        if owner not in whole:
            lacking = [box for box in parts if owner not in holders[box]]
            sent = [
                Transfer(min(holders[box], key=lambda p: (load[p], p)), owner, parts[box])
                for box in lacking
            ]
        found.append(Share(region, owner, tuple(sent)))
    return found


def _largest_holder(
    parts: Mapping[Box, Box], holders: Mapping[Box, Sequence[int]], load: Mapping[int, int]
) -> int:
    """The process that holds the most of some parts; of equals, the least busy."""
    held: dict[int, int] = {}
    for box, part in parts.items():
        size = math.prod(stop - start for start, stop in part)
        for process in holders[box]:
            held[process] = held.get(process, 0) + size
    return min(held, key=lambda process: (-held[process], load[process], process))
