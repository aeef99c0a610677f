"""Which device digests which regions of leaves, and which of them fill a tile together.

A plan: nothing is copied or computed on a device here.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Int32, Shaped, UInt32

from vcjax.hashing import blake3, grid
from vcjax.hashing.regions import Box, Region, box_of, overlap, regions
from vcjax.tree import itemsize

TILE_LANES = (16384, 262144)
"""Sizes of tiles in lanes, 16 and 256 MiB. The large one keeps 262,144 threads busy; a third,
for small trees, would only be one more program to compile."""

Device = Any
"""A `jax.Device`; JAX gives that name no static type."""


def _slots(nbytes: int) -> int:
    return -(-blake3.lanes_of(nbytes) // blake3.SLOT_LANES)


@dataclass(frozen=True)
class Task:
    """A region of a leaf, to be digested on one device.

    Attributes:
        leaf: number of the leaf.
        region: which of its chunks.
        sources: (array on one device, the part of the leaf that it is); more
            than one only where the region has to be put together.
        chunk: elements in each of its chunks; the last may have fewer.
        itemsize: bytes per element in canonical bytes.
    """

    leaf: int
    region: Region
    sources: tuple[tuple[Array, Box], ...]
    chunk: int
    itemsize: int

    @property
    def sizes(self) -> list[int]:
        """Bytes in each chunk."""
        total, full = math.prod(self.region.shape), self.chunk
        counts = [full] * (self.region.chunks - 1)
        return [n * self.itemsize for n in (*counts, total - sum(counts))]

    @functools.cached_property
    def slots(self) -> int:
        """Slots that the region takes in a tile."""
        return sum(map(_slots, self.sizes))

    @functools.cached_property
    def kind(self) -> tuple[Any, ...]:
        """What tasks share that one program can copy; larger ones sort first."""
        source, _ = self.sources[0]
        return (-self.slots, self.region.shape, len(self.sources), source.shape, str(source.dtype))


Content = list[tuple[Task, int]]
"""Tasks in a tile, each with its first slot."""


def tasks_of(leaves: Sequence[tuple[str, Shaped[Array, "..."]]]) -> dict[Device, list[Task]]:
    """What each device has to do: every region once, replicas share the work."""
    work: dict[Device, list[Task]] = defaultdict(list)
    load: dict[Device, int] = defaultdict(int)
    for number, (dtype, array) in enumerate(leaves):
        size = itemsize(dtype)
        chunk = math.prod(grid.chunk_shape(array.shape, size))
        shards = [
            (shard.device, box_of(shard.index, array.shape), shard)
            for shard in array.addressable_shards
        ]
        for region in regions(array.shape, size, tuple(box for _, box, _ in shards)):
            candidates = region.holders or [
                i for i, (_, box, _) in enumerate(shards) if overlap(box, region.box)
            ]
            chosen = min(candidates, key=lambda i: load[shards[i][0]])
            device, box, shard = shards[chosen]
            if region.holders:
                sources = ((shard.data, box),)
            else:
                distinct = {shards[i][1]: shards[i][2].data for i in candidates}
                sources = tuple((data, box) for box, data in distinct.items())
            task = Task(number, region, sources, chunk, size)
            load[device] += task.slots
            work[device].append(task)
    return work


def rounds(work: list[list[Task]]) -> Iterator[tuple[int, list[Content]]]:
    """Tasks in rounds of tiles: (lanes of the tiles, content of the tile of each device)."""
    waiting = [sorted(tasks, key=lambda task: task.kind) for tasks in work]
    while any(waiting):
        needed = max(tasks[0].slots for tasks in waiting if tasks) * blake3.SLOT_LANES
        left = max(sum(task.slots for task in tasks) for tasks in waiting) * blake3.SLOT_LANES
        fitting = [lanes for lanes in TILE_LANES if lanes >= needed]
        lanes = max((lanes for lanes in fitting if lanes <= left), default=fitting[0])
        packed = [_packed(tasks, lanes // blake3.SLOT_LANES) for tasks in waiting]
        waiting = [rest for _, rest in packed]
        yield lanes, [content for content, _ in packed]


def _packed(tasks: list[Task], slots: int) -> tuple[Content, list[Task]]:
    """As many tasks as fit into a tile, each with its first slot, and the others."""
    used, content, rest = 0, [], []
    for task in tasks:
        if used + task.slots <= slots:
            content.append((task, used))
            used += task.slots
        else:
            rest.append(task)
    return content, rest


def message_tables(
    slots: int, contents: list[Content]
) -> tuple[UInt32[np.ndarray, "tables slots"], Int32[np.ndarray, "devices messages"]]:
    """The messages of the tiles as `blake3.hash_tile` takes them, end to end, and first slots.

    The number of first slots is rounded up to a power of two, so that few
    programs are compiled.
    """
    tables, firsts = zip(*(_table(slots, content) for content in contents), strict=True)
    longest = max(1, *map(len, firsts))
    padded = np.zeros((len(contents), 1 << (longest - 1).bit_length()), np.int32)
    for row, first in zip(padded, firsts, strict=True):
        row[: len(first)] = first
    return np.concatenate(tables), padded


def _table(slots: int, content: Content) -> tuple[UInt32[np.ndarray, "3 slots"], list[int]]:
    table = np.zeros((3, slots), np.uint32)
    firsts: list[int] = []
    for task, slot in content:
        for nbytes in task.sizes:
            stop, lanes = slot + _slots(nbytes), blake3.lanes_of(nbytes)
            table[0, slot:stop] = np.arange(stop - slot)
            table[1, slot:stop] = lanes
            table[2, slot:stop] = nbytes - blake3.LANE_BYTES * (lanes - 1)
            firsts.append(slot)
            slot = stop
    return table, firsts
