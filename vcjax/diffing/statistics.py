"""Figures of the difference of two leaves, in one pass over both, block by block."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.tree import storage_dtype

TILE = 4096
"""Elements per partial sum of the compiled pass, which are float32 and added up in float64."""

BLOCK = 1024 * TILE
"""Elements that are compiled and fetched at once: 16 MiB of float32 of either side."""

HOST_BLOCK = 1 << 16
"""Elements that NumPy goes through at once, so that intermediate results stay in its cache."""

SMALLEST = 1e-25
"""Norms below this are computed again in float64: XLA's float32 ends at 1e-38, where it takes
numbers for zero on some devices. What that may hide from larger norms are less than 1e-7 of
them, for leaves of up to 2^60 elements."""

_COMPILED = ("float16", "bfloat16", "float32")


def leaf_statistics(dtype: str, old: Any, new: Any) -> dict[str, float]:
    """Figures of the difference between two contents of a leaf.

    Floating point numbers of 16 and 32 bits are compared by a compiled function,
    all others by NumPy in float64; differences of integers are exact.

    Args:
        dtype: name of their dtype; keys count as the integers they are made of.
        old: array, any shape.
        new: array of the same shape.

    Returns:
        l2: norm of new − old. max_abs: its largest magnitude.
        norm_old, norm_new: norms of the two.
        relative_l2: l2 / norm_old; inf where norm_old is 0 and l2 is not.
        cosine: of the angle between the two; 1 if both are 0, 0 if one is.
        fraction_changed: of the elements; NaN against NaN counts as equal.
        sign_flips: number of elements whose sign changed; 0 for complex numbers.
        nonfinite_old, nonfinite_new: numbers of NaN and infinite elements; pairs
            with one are left out of all sums.

    Example:
        >>> figures = leaf_statistics("float32", np.float32([3, 0]), np.float32([3, 4]))
        >>> figures["l2"], figures["norm_old"], figures["fraction_changed"]
        (4.0, 3.0, 0.5)
    """
    old, new = np.reshape(old, -1), np.reshape(new, -1)
    if storage_dtype(dtype).name in _COMPILED:
        figures = _combined(old.size, map(_compiled, *_blocks(old, new, BLOCK)))
        norms = [(figures["norm_old"], old), (figures["norm_new"], new)]
        vanished = figures["fraction_changed"] > 0 and figures["l2"] < SMALLEST
        if not vanished and not any(norm < SMALLEST and x.any() for norm, x in norms):
            return figures
    return _combined(old.size, map(_on_host, *_blocks(old, new, HOST_BLOCK)))


def _blocks(old: np.ndarray, new: np.ndarray, size: int) -> tuple[Iterator[np.ndarray], ...]:
    starts = range(0, max(1, old.size), size)
    return (old[i : i + size] for i in starts), (new[i : i + size] for i in starts)


class _Parts(NamedTuple):
    """Figures of tiles, to be put together by `_combined`. Each is an array `[tiles]`.

    Attributes:
        max_abs: of new − old.
        difference: (largest part, sum of the squares of what is divided by it).
        old: likewise.
        new: likewise.
        dots: inner products of old and new, so divided.
        changed: how many elements differ.
        sign_flips: how many elements have changed their sign.
        nonfinite_old: how many elements are NaN or infinite.
        nonfinite_new: likewise.
    """

    max_abs: Any
    difference: tuple[Any, Any]
    old: tuple[Any, Any]
    new: tuple[Any, Any]
    dots: Any
    changed: Any
    sign_flips: Any
    nonfinite_old: Any
    nonfinite_new: Any


def _compiled(old: np.ndarray, new: np.ndarray) -> _Parts:
    factor, found = jax.device_get(_jitted(_tiles(old), _tiles(new)))
    parts = _Parts(*jax.tree.map(lambda x: np.asarray(x, np.float64), found))
    top, squares = parts.difference
    return parts._replace(max_abs=top / factor, difference=(top / factor, squares))


def _tiles(array: np.ndarray) -> np.ndarray:
    """A block in rows of `TILE`, zeros after the end.

    The number of rows is a power of two: few shapes mean few compilations.
    """
    rows = 1 << max(0, math.ceil(array.size / TILE) - 1).bit_length()
    if array.size != rows * TILE:
        padded = np.zeros(rows * TILE, array.dtype)
        padded[: array.size] = array
        array = padded
    return array.reshape(rows, TILE)


@jax.jit
def _jitted(old: jax.Array, new: jax.Array) -> tuple[jax.Array, _Parts]:
    """By what differences were multiplied, and the figures of `[rows, TILE]` arrays by row.

    Squares are taken of numbers divided by the tile's largest one: without that a
    difference of 1e-20 would vanish, and one of 1e20 overflow. Where differences
    themselves overflow, all of the tile are halved. Equality and signs are read
    off the bits, as XLA may take the smallest numbers for zero.
    """
    width = 8 * old.dtype.itemsize
    unsigned = jnp.uint32 if width == 32 else jnp.uint16
    bits_old, bits_new = (jax.lax.bitcast_convert_type(x, unsigned) for x in (old, new))
    finite_old, finite_new = jnp.isfinite(old), jnp.isfinite(new)
    both = finite_old & finite_new
    nonzero_old, nonzero_new = bits_old << 1 != 0, bits_new << 1 != 0
    changed = (bits_old != bits_new) & (nonzero_old | nonzero_new)
    changed &= ~(jnp.isnan(old) & jnp.isnan(new))
    flips = ((bits_old ^ bits_new) >> (width - 1) != 0) & nonzero_old & nonzero_new & both

    a = jnp.where(both, old.astype(jnp.float32), 0)
    b = jnp.where(both, new.astype(jnp.float32), 0)
    overflows = jnp.any(jnp.isinf(b - a), axis=1)
    factor = jnp.where(overflows, jnp.float32(0.5), jnp.float32(1))
    difference = b * factor[:, None] - a * factor[:, None]

    def scaled(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        top = jnp.max(jnp.abs(values), axis=1, keepdims=True)
        # XLA multiplies by 1 / top, which it takes for zero where top is 1e38.
        smaller = jnp.where(top > 2.0**64, jnp.float32(2.0**-64), jnp.float32(1))
        return top[:, 0], values * smaller / jnp.where(top == 0, 1, top * smaller)

    top_d, unit_d = scaled(difference)
    top_a, unit_a = scaled(a)
    top_b, unit_b = scaled(b)
    return factor, _Parts(
        top_d,
        (top_d, _sum(unit_d * unit_d)),
        (top_a, _sum(unit_a * unit_a)),
        (top_b, _sum(unit_b * unit_b)),
        _sum(unit_a * unit_b),
        *(jnp.sum(x, axis=1) for x in (changed, flips, ~finite_old, ~finite_new)),
    )


def _sum(values: jax.Array) -> jax.Array:
    """Sums of rows in three rounds of 16: one after the other they would lose two digits."""
    return values.reshape(-1, 16, 16, 16).sum(3).sum(2).sum(1)


def _on_host(old: np.ndarray, new: np.ndarray) -> _Parts:
    """The figures of one block, as one tile, in float64."""
    complex_ = "complex" in old.dtype.name
    a, b = (x.astype(np.complex128 if complex_ else np.float64) for x in (old, new))
    finite_old, finite_new = np.isfinite(a), np.isfinite(b)
    changed = (old != new) & ~(np.isnan(a) & np.isnan(b))
    a[~(finite_old & finite_new)] = b[~(finite_old & finite_new)] = 0
    factor = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        if old.dtype.kind in "iu" and old.dtype.itemsize == 8:
            # As float64, neighbours would be equal. uint64 counts modulo 2^64.
            one, other = old.view(np.uint64), new.view(np.uint64)
            difference = np.where(new >= old, other - one, one - other).astype(np.float64)
        else:
            difference = b - a
        if not np.isfinite(difference).all():
            factor = 0.5
            difference = b * factor - a * factor
        largest = np.max(np.abs(difference), initial=0) / factor
        top_d, unit_d = _scaled(difference)
        top_d = top_d / factor
    (top_a, unit_a), (top_b, unit_b) = _scaled(a), _scaled(b)
    return _Parts(
        largest,
        (top_d, unit_d @ unit_d),
        (top_a, unit_a @ unit_a),
        (top_b, unit_b @ unit_b),
        unit_a @ unit_b,
        np.sum(changed),
        0 if complex_ else np.sum(np.sign(a) * np.sign(b) < 0),
        np.sum(~finite_old),
        np.sum(~finite_new),
    )


def _scaled(values: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest magnitude, and the values divided by it; complex ones as pairs of reals."""
    reals = values.view(np.float64)
    top = float(np.max(np.abs(reals), initial=0))
    return top, reals / (top or 1)


def _norm(tops: np.ndarray, sums: np.ndarray) -> float:
    largest = float(np.max(tops))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(math.fsum((tops / largest) ** 2 * sums))


def _combined(elements: int, blocks: Iterable[_Parts]) -> dict[str, float]:
    """The figures of a leaf of those of its blocks."""
    columns = jax.tree.map(lambda *x: np.concatenate([np.atleast_1d(y) for y in x]), *blocks)
    l2, norm_old, norm_new = map(_norm, *zip(*columns[1:4], strict=True))
    return {
        "l2": l2,
        "relative_l2": l2 / norm_old if norm_old else (math.inf if l2 else 0.0),
        "max_abs": float(np.max(columns.max_abs)),
        "cosine": _cosine(columns.old[0], columns.new[0], columns.dots, norm_old, norm_new),
        "norm_old": norm_old,
        "norm_new": norm_new,
        "elements": elements,
        "changed": int(np.sum(columns.changed)),
        "fraction_changed": int(np.sum(columns.changed)) / max(1, elements),
        "sign_flips": int(np.sum(columns.sign_flips)),
        "nonfinite_old": int(np.sum(columns.nonfinite_old)),
        "nonfinite_new": int(np.sum(columns.nonfinite_new)),
    }


def _cosine(
    tops_old: np.ndarray, tops_new: np.ndarray, dots: np.ndarray, norm_old: float, norm_new: float
) -> float:
    if norm_old == 0 or norm_new == 0:
        return 1.0 if norm_old == norm_new else 0.0
    cosine = math.fsum((tops_old / norm_old) * (tops_new / norm_new) * dots)
    return min(1.0, max(-1.0, cosine))
