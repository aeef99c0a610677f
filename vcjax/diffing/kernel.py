"""The compiled pass: sums over two arrays, read where they lie."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, Shaped, UInt32

from vcjax.diffing.contents import aligned

DTYPES = ("float16", "bfloat16", "float32")
"""What the pass takes."""

TERMS = 16
"""Products that are added up in float32, as a tree, before NumPy adds up such sums in float64:
the relative error of a sum of squares of random numbers is 1e-9 and never more than 3e-7, that
of a norm half of it."""

LANES = 2048
"""Sums that are made side by side: `TERMS` rows of this length of both sides fit into the
second-level cache, where each of the six sums reads them again."""

TILE = TERMS * LANES
"""Elements of one step of the loop."""

BLOCK = 16 * TILE
"""Elements of one call, at most: half a chunk of float32. All calls have this one shape, so that
there is one compilation per dtype (0.5 s on a CPU)."""

_LINE = 64
"""Bytes that JAX on a CPU wants addresses to be multiples of, or it copies. No less than the
elements that lie in so many bytes."""

_WINDOW = BLOCK + _LINE
"""Elements of the arrays that a call is given: the block begins at an offset that is a number
rather than a shape, so that memory of any alignment is used in place (a copy takes as long as
half of the sums)."""

_FLIP = 2 * BLOCK
"""What a changed sign adds to a count, so that both counts of a block fit into one sum."""


@dataclass(frozen=True)
class Sums:
    """Of new − old, old, new and old · (new − old): sums of squares or products; and counts.

    Attributes:
        difference: sum of (new − old)².
        old: sum of old².
        new: sum of new².
        product: sum of old · (new − old).
        largest: the largest |new − old|.
        changed: how many elements differ; 0 and −0 do not.
        flips: how many changed their sign.
    """

    difference: float
    old: float
    new: float
    product: float
    largest: float
    changed: int
    flips: int


@dataclass(frozen=True)
class Block:
    """A part of two flat arrays that one call goes through.

    Attributes:
        old: the part of the old side.
        new: that of the new one.
        around: the arrays that `old` and `new` are parts of.
        start: where in these they begin.
    """

    old: Float[np.ndarray, " size"]
    new: Float[np.ndarray, " size"]
    around: tuple[Float[np.ndarray, " held"], Float[np.ndarray, " held"]]
    start: int


def blocks(old: Float[np.ndarray, " size"], new: Float[np.ndarray, " size"]) -> Iterator[Block]:
    """Cuts two arrays into blocks.

    Of large ones, whole tiles behind the first cache line can be used in place; what is
    left over at both ends is one more block. Where the cuts are depends on the size
    alone, and so does how rounding goes.
    """
    size, start = old.size, 0
    if size >= _WINDOW + _LINE:
        stop = _LINE + (size - 2 * _LINE) // TILE * TILE
        for start in range(_LINE, stop, BLOCK):
            part = slice(start, min(start + BLOCK, stop))
            yield Block(old[part], new[part], (old, new), start)
        old, new = (np.concatenate([side[:_LINE], side[stop:]]) for side in (old, new))
    for start in range(0, max(1, old.size), BLOCK):
        part = slice(start, start + BLOCK)
        yield Block(old[part], new[part], (old[part], new[part]), 0)


def sums(block: Block) -> Sums:
    """Of a block of one of `DTYPES`; not finite if one of its elements or a sum is not."""
    steps = -(-block.old.size // TILE)
    held = [_in_place(side, block.start) for side in block.around]
    held = [
        _copied(place, part) if found is None else found
        for place, part, found in zip((0, 1), (block.old, block.new), held, strict=True)
    ]
    (old, first), (new, second) = held
    # Given to the function as they are, arrays take 60 µs less than through `jax.device_put`.
    with jax.default_device(_cpu()):
        found = _pass(old, new, np.array([steps, first, second], np.int32))
    *products, largest, counts = (np.asarray(part)[: steps * LANES] for part in found)
    with np.errstate(invalid="ignore", over="ignore"):
        difference, one, other, product = (
            float(np.sum(part, dtype=np.float64)) for part in products
        )
    flips, changed = divmod(int(np.sum(counts, dtype=np.uint64)), _FLIP)
    top = float(np.max(largest).view(np.float32))
    return Sums(difference, one, other, product, top, changed, flips)


# -- the arrays that a call is given -------------------------------------------

_buffers = threading.local()


@cache
def _cpu() -> Any:
    return jax.local_devices(backend="cpu")[0]


def _in_place(
    array: Float[np.ndarray, " size"], start: int
) -> tuple[Float[np.ndarray, " window"], int] | None:
    """A window of an array that a block lies in, and where in it; None if there is none."""
    width, address = array.itemsize, array.ctypes.data
    if array.size < _WINDOW + _LINE or address % width or not array.flags.c_contiguous:
        return None
    begin = min(start, array.size - _WINDOW)
    begin -= (address + begin * width) % _LINE // width
    return array[begin : begin + _WINDOW], start - begin


def _copied(
    place: int, array: Float[np.ndarray, " size"]
) -> tuple[Float[np.ndarray, " window"], int]:
    """A copy in a buffer that is used again, with zeros behind it as far as the pass goes."""
    name = f"{place} {array.dtype.name}"
    held = _buffers.__dict__.setdefault(name, None)
    if held is None:
        held = _buffers.__dict__[name] = aligned(_WINDOW, array.dtype)
    held[: array.size] = array
    held[array.size : -(-array.size // TILE) * TILE] = 0
    return held, 0


# -- the pass ------------------------------------------------------------------

_Groups = tuple[Float[jax.Array, " groups"] | UInt32[jax.Array, " groups"], ...]


@jax.jit
def _pass(
    old: Float[jax.Array, " window"],
    new: Float[jax.Array, " window"],
    places: Int32[jax.Array, "3"],
) -> _Groups:
    """Sums over groups of `TERMS` elements of two arrays of `_WINDOW`, all in one loop.

    What a step finds is written where no other step writes. XLA's CPU compiler makes
    one loop over `LANES` of each result, and none that reads what another has just
    written: sums that are carried from step to step took three such loops each, one
    of them handed over to other threads, at 2.5 times the CPU time.

    Equality and signs are read off the bits, as XLA may take the smallest numbers
    for zero.

    Args:
        old: the one.
        new: the other.
        places: how many times `TILE` elements are gone through, and where the first
            of them are in `old` and in `new`.

    Returns:
        The products of `Sums`, the bits of the largest |new − old|, and how many
        elements changed + `_FLIP` times how many changed their sign, of
        `BLOCK / TERMS` groups, of which what lies behind the last step is 0.
    """

    def body(step: Int32[jax.Array, ""], carry: _Groups) -> _Groups:
        rows = []
        for term in range(TERMS):
            at = (step * TERMS + term) * LANES
            pair = ((old, places[1] + at), (new, places[2] + at))
            rows.append(_row(*(jax.lax.dynamic_slice(x, (i,), (LANES,)) for x, i in pair)))
        merges = (jnp.add,) * 4 + (jnp.maximum, jnp.add)
        found = map(_tree, merges, zip(*rows, strict=True))
        return tuple(
            jax.lax.dynamic_update_slice(held, part, (step * LANES,))
            for held, part in zip(carry, found, strict=True)
        )

    kinds = (jnp.float32,) * 4 + (jnp.uint32,) * 2
    start = tuple(jnp.zeros(BLOCK // TERMS, kind) for kind in kinds)
    return jax.lax.fori_loop(jnp.int32(0), places[0], body, start)


def _tree(
    merge: Callable[..., jax.Array], parts: Sequence[Shaped[jax.Array, " lanes"]]
) -> Shaped[jax.Array, " lanes"]:
    """Merged two by two, so that rounding adds up over the depth of the tree alone."""
    while len(parts) > 1:
        parts = [merge(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _row(
    x: Float[jax.Array, " lanes"], y: Float[jax.Array, " lanes"]
) -> tuple[Shaped[jax.Array, " lanes"], ...]:
    """Products, bits of |difference| and packed counts of one row of elements."""
    unsigned = jnp.uint32 if x.dtype.itemsize == 4 else jnp.uint16
    one, sign = unsigned(1), unsigned(8 * x.dtype.itemsize - 1)
    b_x, b_y = (jax.lax.bitcast_convert_type(values, unsigned) for values in (x, y))
    changed = (b_x != b_y) & ((b_x | b_y) << one != 0)
    flipped = ((b_x ^ b_y) >> sign != 0) & (jnp.minimum(b_x << one, b_y << one) != 0)
    counts = jnp.where(changed, jnp.where(flipped, 1 + _FLIP, 1), 0).astype(jnp.uint32)
    a, b = x.astype(jnp.float32), y.astype(jnp.float32)
    d = b - a
    magnitude = jax.lax.bitcast_convert_type(jnp.abs(d), jnp.uint32)
    return d * d, a * a, b * b, a * d, magnitude, counts
