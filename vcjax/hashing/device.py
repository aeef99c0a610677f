"""Digests of arrays where they live: chunks are copied into tiles, and tiles hashed.

For every device there is one dispatch chain without a round trip: place
regions of leaves into a tile, hash the tile, pick its digests, next tile. The
host waits only at the end, for 32 bytes a chunk. What is compiled: `_hash` for
either of `TILE_LANES`, which is all of BLAKE3, and `_place`, a copy, for each
shape and dtype of regions.
"""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vcjax.hashing import blake3, grid
from vcjax.hashing.digests import LeafDigest, leaf_digest
from vcjax.hashing.regions import Box, Region, overlap, regions
from vcjax.tree import itemsize as canonical_itemsize

TILE_LANES = (16384, 262144)
"""Sizes of tiles in lanes, 16 and 256 MiB. The large one keeps 262,144 threads busy; a third,
for small trees, would only be one more program to compile."""

TREE_LEVELS = 13
"""Levels of the tree of the longest chunk: chunks are below 8 MiB, 8,192 lanes."""


@dataclass(frozen=True, slots=True)
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

    @property
    def slots(self) -> int:
        """Slots that the region takes in a tile."""
        return sum(map(_slots, self.sizes))


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
        chains = [_chain(*item) for item in _tasks(leaves).items()]
    for content, digests in itertools.chain(*chains):
        _collect(content, np.asarray(digests), found)
    return [
        _leaf_digest(dtype, array.shape, chunks)
        for (dtype, array), chunks in zip(leaves, found, strict=True)
    ]


def _leaf_digest(dtype: str, shape: tuple[int, ...], chunks: dict[int, bytes]) -> LeafDigest:
    part = grid.chunk_shape(shape, canonical_itemsize(dtype))
    digests = tuple(chunks[number] for number in range(len(chunks)))
    return LeafDigest(leaf_digest(dtype, shape, part, digests), digests)


def _tasks(leaves: Sequence[tuple[str, Array]]) -> dict[jax.Device, list[_Task]]:
    """What each device has to do: every region once, replicas share the work."""
    work: dict[jax.Device, list[_Task]] = defaultdict(list)
    load: dict[jax.Device, int] = defaultdict(int)
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


def _chain(device: jax.Device, tasks: list[_Task]) -> list[tuple[list[tuple[_Task, int]], Array]]:
    """Dispatches the work of one device.

    Returns:
        For each tile the tasks in it, each with its first slot, and the digests of
        their chunks, still on the device.
    """
    results = []
    tiles: dict[int, Array] = {}
    unrolled = device.platform != "cpu"
    with jax.default_device(device):
        for lanes, content in _packed(tasks):
            slots = lanes // blake3.SLOT_LANES
            tile = tiles.pop(lanes, None)
            if tile is None:
                tile = jnp.zeros((16, 16, blake3.SLOT_LANES, slots), jnp.uint32)
            for task, slot in content:
                source, start = _source(task, device)
                where = np.asarray([*start, slot], np.int32)
                tile = _place(tile, source, where, shape=task.region.shape, chunk=task.chunk)
            table, first = _table(slots, content)
            levels = min(TREE_LEVELS, (lanes - 1).bit_length())
            digests = _pick(_hash(tile, table, levels=levels, unrolled=unrolled), first)
            digests.copy_to_host_async()
            results.append((content, digests))
            tiles[lanes] = tile
    return results


def _packed(tasks: list[_Task]) -> Iterator[tuple[int, list[tuple[_Task, int]]]]:
    """Tasks in tiles: (lanes of the tile, its tasks with their first slots)."""
    waiting = sorted(tasks, key=lambda task: task.slots, reverse=True)
    left = sum(task.slots for task in waiting)
    while waiting:
        needed = waiting[0].slots * blake3.SLOT_LANES
        fitting = [lanes for lanes in TILE_LANES if lanes >= needed]
        full = [lanes for lanes in fitting if lanes <= left * blake3.SLOT_LANES]
        lanes = max(full, default=fitting[0])
        free, slot = lanes // blake3.SLOT_LANES, 0
        content, rest = [], []
        for task in waiting:
            if slot + task.slots <= free:
                content.append((task, slot))
                slot += task.slots
            else:
                rest.append(task)
        left -= slot
        waiting = rest
        yield lanes, content


def _table(slots: int, content: list[tuple[_Task, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The messages of a tile as `blake3.hash_tile` takes them, and their first slots.

    The number of first slots is rounded up to a power of two, so that few
    programs are compiled.
    """
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
    padding = [0] * ((1 << (len(firsts) - 1).bit_length()) - len(firsts))
    return table, np.asarray(firsts + padding, np.int32)


def _collect(
    content: list[tuple[_Task, int]], digests: np.ndarray, found: list[dict[int, bytes]]
) -> None:
    rows = iter(np.ascontiguousarray(digests.T.astype("<u4", copy=False)))
    for task, _ in content:
        for chunk in range(task.region.chunks):
            found[task.leaf][task.region.first + chunk] = next(rows).tobytes()


def _source(task: _Task, device: jax.Device) -> tuple[Array, tuple[int, ...]]:
    """An array on `device` that holds a region, and where in it the region begins."""
    box = task.region.box
    if len(task.sources) == 1:
        array, held = task.sources[0]
        return array, tuple(b[0] - h[0] for b, h in zip(box, held, strict=True))
    target = jnp.zeros(task.region.shape, task.sources[0][0].dtype)
    for array, held in task.sources:
        part = overlap(held, box)
        if part is None:
            continue
        start = np.asarray([p[0] - h[0] for p, h in zip(part, held, strict=True)], np.int32)
        piece = _cut(array, start, shape=tuple(stop - begin for begin, stop in part))
        to = np.asarray([p[0] - b[0] for p, b in zip(part, box, strict=True)], np.int32)
        target = _paste(target, jax.device_put(piece, device), to)
    return target, (0,) * len(box)


@functools.partial(jax.jit, static_argnames="shape")
def _cut(array: Array, start: Array, *, shape: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(array, list(start), shape)


@functools.partial(jax.jit, donate_argnums=0)
def _paste(target: Array, piece: Array, start: Array) -> Array:
    return lax.dynamic_update_slice(target, piece, list(start))


@functools.partial(jax.jit, static_argnames=("shape", "chunk"), donate_argnums=0)
def _place(
    tile: Array, source: Array, where: Array, *, shape: tuple[int, ...], chunk: int
) -> Array:
    """Copies a region into a tile.

    Args:
        tile: as `blake3.hash_tile` takes it.
        source: array that holds the region.
        where: where in the source the region begins, then its first slot.
        shape: of the region.
        chunk: elements in each of its chunks; the last may have fewer.
    """
    flat = lax.dynamic_slice(source, list(where[:-1]), shape).reshape(-1)
    full = max(0, flat.size - 1) // chunk * chunk
    parts = [flat[:full].reshape(-1, chunk)] if full else []
    parts.append(flat[full:].reshape(1, -1))
    lanes = jnp.concatenate([_lanes(part) for part in parts])
    zero = jnp.zeros_like(where[-1])
    return lax.dynamic_update_slice(tile, blake3.to_tile(lanes), [zero, zero, zero, where[-1]])


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


def _whole_bytes(x: Array) -> Array:
    """Rows of a dtype that has whole bytes and can be bitcast, with the canonical bytes of `x`."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([x.real, x.imag], axis=-1).reshape(x.shape[0], -1)
    bits = jax.dtypes.itemsize_bits(x.dtype)
    if bits >= 8:
        return x
    if jnp.issubdtype(x.dtype, jnp.signedinteger):
        return x.astype(jnp.int8)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))
    return x.astype(jnp.uint8)


_hash = jax.jit(blake3.hash_tile, static_argnames=("levels", "unrolled"))


@jax.jit
def _pick(digests: Array, first: Array) -> Array:
    return digests[:, first]
