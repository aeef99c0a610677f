"""Digests of arrays where they live: chunks are copied into tiles, and tiles hashed.

There is one dispatch chain without a round trip: place regions of leaves into
tiles, hash the tiles, pick their digests, next tiles. The host waits only at
the end, for 32 bytes a chunk. What is compiled: `blake3.hash_tile` for either
of `TILE_LANES`, and `_place`, a copy, for each shape and dtype of regions
and each of `BATCHES`.
"""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vcjax.hashing import blake3, grid
from vcjax.hashing.digests import LeafDigest, leaf_digest
from vcjax.hashing.regions import Box, Region, overlap, regions
from vcjax.tree import itemsize as canonical_itemsize

TILE_LANES = (16384, 262144)
"""Sizes of tiles in lanes, 16 and 256 MiB. The large one keeps 262,144 threads busy; a third,
for small trees, would only be one more program to compile."""

BATCHES = (16, 4, 1)
"""How many regions one program copies."""

BATCH_SLOTS = 4096
"""Most slots that one program fills, 64 MiB: the copies are held twice."""

TREE_LEVELS = 13
"""Levels of the tree of the longest chunk: chunks are below 8 MiB, 8,192 lanes."""


@dataclass(frozen=True)
class _Task:
    """A region of a leaf, to be digested on one device.

    Attributes:
        leaf: number of the leaf.
        region: which of its chunks.
        sources: (array on one device, the part of the leaf that it is); more
            than one only where the region has to be put together.
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


Device = Any
"""A `jax.Device`; JAX gives that name no static type."""

_Content = list[tuple[_Task, int]]
"""Tasks in a tile, each with its first slot."""

_TEAM = "team"


def _slots(nbytes: int) -> int:
    return -(-blake3.lanes_of(nbytes) // blake3.SLOT_LANES)


def digest_on_devices(leaves: Iterable[tuple[str, Array]]) -> list[LeafDigest]:
    """The digests of JAX arrays, computed on the devices that hold them.

    Args:
        leaves: (dtype name, array) per leaf; PRNG keys as their words. All
            shards, or a replica of each, must be addressable.
    """
    leaves = list(leaves)
    found: list[dict[int, bytes]] = [{} for _ in leaves]
    # Without x64, JAX would cut 64-bit arrays that were made with it in half.
    with jax.enable_x64(True):
        results = [result for team in _teams(_tasks(leaves)) for result in _chain(team)]
    for contents, digests in results:
        for content, rows in zip(contents, np.asarray(digests), strict=True):
            _collect(content, rows, found)
    return [
        _leaf_digest(dtype, array.shape, chunks)
        for (dtype, array), chunks in zip(leaves, found, strict=True)
    ]


def _leaf_digest(dtype: str, shape: tuple[int, ...], chunks: dict[int, bytes]) -> LeafDigest:
    part = grid.chunk_shape(shape, canonical_itemsize(dtype))
    digests = tuple(chunks[number] for number in range(len(chunks)))
    return LeafDigest(leaf_digest(dtype, shape, part, digests), digests)


def _tasks(leaves: Sequence[tuple[str, Array]]) -> dict[Device, list[_Task]]:
    """What each device has to do: every region once, replicas share the work."""
    work: dict[Device, list[_Task]] = defaultdict(list)
    load: dict[Device, int] = defaultdict(int)
    for number, (dtype, array) in enumerate(leaves):
        size = canonical_itemsize(dtype)
        chunk = math.prod(grid.chunk_shape(array.shape, size))
        shards = [
            (shard.device, _box(shard.index, array.shape), shard)
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
            task = _Task(number, region, sources, chunk, size)
            load[device] += task.slots
            work[device].append(task)
    return work


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(length)[:2] for part, length in zip(index, shape, strict=True))


def _teams(work: dict[Device, list[_Task]]) -> list[dict[Device, list[_Task]]]:
    """Work in parts whose devices can run one program together: those of one platform."""
    teams: dict[str, dict[Device, list[_Task]]] = defaultdict(dict)
    for device in sorted(work, key=lambda device: (device.platform, device.id)):
        teams[device.platform][device] = work[device]
    return list(teams.values())


def _chain(work: dict[Device, list[_Task]]) -> list[tuple[list[_Content], Array]]:
    """Dispatches the work of some devices: in every round, each fills a tile, and all hash theirs.

    One program for all of them, since XLA would compile the kernel anew for each.

    Returns:
        For every round what was in the tile of each device, and the digests
        `[devices, chunks, 8]`, still on the devices.
    """
    devices = tuple(work)
    hash_tiles, pick = _programs(devices)
    tiles: dict[tuple[Device, int], Array] = {}
    results = []
    for lanes, contents in _rounds(list(work.values())):
        slots = lanes // blake3.SLOT_LANES
        filled = []
        for device, content in zip(devices, contents, strict=True):
            with jax.default_device(device):
                tile = tiles.pop((device, lanes), None)
                if tile is None:
                    zeros = jnp.zeros((16, 16, blake3.SLOT_LANES, slots), jnp.uint32)
                    tile = jax.device_put(zeros, device)
                tile = _fill(tile, content, device)
            filled.append(tile)
            tiles[device, lanes] = tile
        sharding = NamedSharding(Mesh(devices, _TEAM), PartitionSpec(_TEAM))
        shape = (16 * len(devices), *filled[0].shape[1:])
        together = jax.make_array_from_single_device_arrays(shape, sharding, filled)
        table, first = _tables(slots, contents)
        levels = min(TREE_LEVELS, (lanes - 1).bit_length())
        digests = pick(hash_tiles(together, table, levels=levels), first)
        digests.copy_to_host_async()
        results.append((contents, digests))
    return results


def _fill(tile: Array, content: _Content, device: Device) -> Array:
    """Copies regions into a tile, many of a kind at once: a dispatch takes longer than a copy."""
    slot = 0
    for _, group in itertools.groupby((task for task, _ in content), key=lambda task: task.kind):
        tasks = list(group)
        while tasks:
            room = max(1, BATCH_SLOTS // tasks[0].slots)
            count = next(n for n in BATCHES if n <= min(room, len(tasks)))
            batch, tasks = tasks[:count], tasks[count:]
            sources, starts = zip(*(_source(task, device) for task in batch), strict=True)
            where = np.asarray([(*start, slot) for start in starts], np.int32)
            kind = batch[0]
            tile = _place(tile, sources, where, shape=kind.region.shape, chunk=kind.chunk)
            slot += count * kind.slots
    return tile


def _rounds(work: list[list[_Task]]) -> Iterator[tuple[int, list[_Content]]]:
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


def _packed(tasks: list[_Task], slots: int) -> tuple[_Content, list[_Task]]:
    """As many tasks as fit into a tile, each with its first slot, and the others."""
    used, content, rest = 0, [], []
    for task in tasks:
        if used + task.slots <= slots:
            content.append((task, used))
            used += task.slots
        else:
            rest.append(task)
    return content, rest


def _tables(slots: int, contents: list[_Content]) -> tuple[np.ndarray, np.ndarray]:
    """The messages of the tiles as `blake3.hash_tile` takes them, and their first slots.

    The number of first slots is rounded up to a power of two, so that few
    programs are compiled.
    """
    tables, firsts = zip(*(_table(slots, content) for content in contents), strict=True)
    longest = max(1, *map(len, firsts))
    padded = np.zeros((len(contents), 1 << (longest - 1).bit_length()), np.int32)
    for row, first in zip(padded, firsts, strict=True):
        row[: len(first)] = first
    return np.concatenate(tables), padded


def _table(slots: int, content: _Content) -> tuple[np.ndarray, list[int]]:
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


def _collect(content: _Content, digests: np.ndarray, found: list[dict[int, bytes]]) -> None:
    rows = iter(digests.astype("<u4", copy=False))
    for task, _ in content:
        for chunk in range(task.region.chunks):
            found[task.leaf][task.region.first + chunk] = next(rows).tobytes()


def _source(task: _Task, device: Device) -> tuple[Array, tuple[int, ...]]:
    """An array on `device` that holds a region, and where in it the region begins."""
    box = task.region.box
    if len(task.sources) == 1:
        array, held = task.sources[0]
        return array, tuple(b[0] - h[0] for b, h in zip(box, held, strict=True))
    target = None
    for array, held in task.sources:
        part = overlap(held, box)
        if part is None:
            continue
        start = np.asarray([p[0] - h[0] for p, h in zip(part, held, strict=True)], np.int32)
        piece = _cut(array, start, shape=tuple(stop - begin for begin, stop in part))
        to = np.asarray([p[0] - b[0] for p, b in zip(part, box, strict=True)], np.int32)
        if target is None:
            target = jnp.zeros(task.region.shape, piece.dtype)
        target = _paste(target, jax.device_put(piece, device), to)
    assert target is not None  # the shards cover the leaf
    return target, (0,) * len(box)


@functools.partial(jax.jit, static_argnames="shape")
def _cut(array: Array, start: Array, *, shape: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(_without_floats(array), list(start), shape)


@functools.partial(jax.jit, donate_argnums=0)
def _paste(target: Array, piece: Array, start: Array) -> Array:
    return lax.dynamic_update_slice(target, piece, list(start))


@functools.partial(jax.jit, static_argnames=("shape", "chunk"), donate_argnums=0)
def _place(
    tile: Array,
    sources: tuple[Array, ...],
    where: Array,
    *,
    shape: tuple[int, ...],
    chunk: int,
) -> Array:
    """Copies regions of one kind into neighbouring slots of a tile.

    Args:
        tile: as `blake3.hash_tile` takes it.
        sources: arrays that hold the regions.
        where: for each, where in its source the region begins, then its first slot.
        shape: of the regions.
        chunk: elements in each of their chunks; the last of a region may have fewer.
    """
    parts = []
    for source, start in zip(sources, where, strict=True):
        flat = lax.dynamic_slice(_without_floats(source), list(start[:-1]), shape).reshape(-1)
        full = max(0, flat.size - 1) // chunk * chunk
        if full:
            parts.append(_lanes(flat[:full].reshape(-1, chunk)))
        parts.append(_lanes(flat[full:].reshape(1, -1)))
    zero = jnp.zeros_like(where[0, -1])
    filled = blake3.to_tile(jnp.concatenate(parts))
    return lax.dynamic_update_slice(tile, filled, [zero, zero, zero, where[0, -1]])


def _lanes(messages: Array) -> Array:
    """The canonical bytes of each row as words, `[lanes, 256]`, padded to whole slots."""
    words = canonical_words(messages)
    slot_words = blake3.SLOT_LANES * blake3.LANE_BYTES // 4
    padding = -words.shape[1] % slot_words
    return jnp.pad(words, ((0, 0), (0, padding))).reshape(-1, 256)


def canonical_words(x: Array) -> Array:
    """The canonical bytes of each row as little-endian words; zeros fill the last word.

    Args:
        x: of any dtype that JAX has, `[rows, elements]`.

    Returns:
        uint32 `[rows, ⌈bytes of a row / 4⌉]`.
    """
    x = _whole_bytes(x)
    rows, width = x.shape[0], x.dtype.itemsize
    if width >= 4:
        return lax.bitcast_convert_type(x, jnp.uint32).reshape(rows, -1)
    bits = lax.bitcast_convert_type(x, jnp.uint8 if width == 1 else jnp.uint16)
    per_word = 4 // width
    bits = jnp.pad(bits, ((0, 0), (0, -bits.shape[1] % per_word)))
    return lax.bitcast_convert_type(bits.reshape(rows, -1, per_word), jnp.uint32)


def _without_floats(x: Array) -> Array:
    """Floats as integers of the same bits.

    XLA may compute in float32 where a device lacks a float type, be it only to
    slice, and that changes the payloads of NaNs (seen with bfloat16 on CPUs).
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.bitcast_convert_type(x, f"uint{jax.dtypes.itemsize_bits(x.dtype)}")
    return x


def _whole_bytes(x: Array) -> Array:
    """Rows of a dtype that has whole bytes and can be bitcast, with the canonical bytes of `x`."""
    x = _without_floats(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        pairs = (_without_floats(x.real), _without_floats(x.imag))
        return jnp.stack(pairs, axis=-1).reshape(x.shape[0], -1)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    if jax.dtypes.itemsize_bits(x.dtype) >= 8:
        return x
    return x.astype(jnp.int8 if jnp.issubdtype(x.dtype, jnp.signedinteger) else jnp.uint8)


@functools.cache
def _programs(devices: tuple[Device, ...]) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The kernel for tiles on these devices, and what picks digests from its result."""
    mesh, spec = Mesh(devices, _TEAM), PartitionSpec(_TEAM)
    unrolled = devices[0].platform != "cpu"
    together = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False
    )

    @functools.partial(jax.jit, static_argnames="levels")
    def hash_tiles(tiles: Array, tables: Array, *, levels: int) -> Array:
        kernel = functools.partial(blake3.hash_tile, levels=levels, unrolled=unrolled)
        return together(kernel)(tiles, tables)

    @jax.jit
    @together
    def pick(digests: Array, first: Array) -> Array:
        return digests[:, first[0]].T[None]

    return hash_tiles, pick
