"""Copying regions of leaves into the tiles that `blake3.hash_tile` takes, on their devices.

What is compiled: `_place`, a copy, for each shape and dtype of regions and each of
`BATCHES`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int32, Shaped, UInt32

from vcjax.hashing import blake3
from vcjax.hashing.regions import overlap
from vcjax.hashing.schedule import Content, Device, Task
from vcjax.hashing.words import canonical_words, without_floats

BATCHES = (16, 4, 1)
"""How many regions one program copies."""

BATCH_SLOTS = 4096
"""Most slots that one program fills, 64 MiB: the copies are held twice."""


def fill(tile: blake3.Tile, content: Content, device: Device) -> blake3.Tile:
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


def _source(task: Task, device: Device) -> tuple[Array, tuple[int, ...]]:
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
def _cut(
    array: Shaped[Array, "..."], start: Int32[Array, " axes"], *, shape: tuple[int, ...]
) -> Shaped[Array, "..."]:
    return lax.dynamic_slice(without_floats(array), list(start), shape)


@functools.partial(jax.jit, donate_argnums=0)
def _paste(
    target: Shaped[Array, "*shape"], piece: Shaped[Array, "..."], start: Int32[Array, " axes"]
) -> Shaped[Array, "*shape"]:
    return lax.dynamic_update_slice(target, piece, list(start))


@functools.partial(jax.jit, static_argnames=("shape", "chunk"), donate_argnums=0)
def _place(
    tile: blake3.Tile,
    sources: tuple[Shaped[Array, "..."], ...],
    where: Int32[Array, "sources places"],
    *,
    shape: tuple[int, ...],
    chunk: int,
) -> blake3.Tile:
    """Copies regions of one kind into neighbouring slots of a tile.

    Args:
        sources: arrays that hold the regions.
        where: for each, where in its source the region begins, then its first slot.
        shape: of the regions.
        chunk: elements in each of their chunks; the last of a region may have fewer.
    """
    parts = []
    for source, start in zip(sources, where, strict=True):
        flat = lax.dynamic_slice(without_floats(source), list(start[:-1]), shape).reshape(-1)
        full = max(0, flat.size - 1) // chunk * chunk
        if full:
            parts.append(_lanes(flat[:full].reshape(-1, chunk)))
        parts.append(_lanes(flat[full:].reshape(1, -1)))
    zero = jnp.zeros_like(where[0, -1])
    filled = blake3.to_tile(jnp.concatenate(parts))
    return lax.dynamic_update_slice(tile, filled, [zero, zero, zero, where[0, -1]])


def _lanes(messages: Shaped[Array, "rows elements"]) -> UInt32[Array, "lanes 256"]:
    """The canonical bytes of each row as words, padded to whole slots."""
    words = canonical_words(messages)
    slot_words = blake3.SLOT_LANES * blake3.LANE_BYTES // 4
    padding = -words.shape[1] % slot_words
    return jnp.pad(words, ((0, 0), (0, padding))).reshape(-1, 256)
