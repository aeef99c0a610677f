"""Figures of the difference of two leaves, in one pass over both, block by block."""

import math
import threading
from collections.abc import Iterator
from functools import cache, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.diffing.contents import aligned
from vcjax.diffing.modules import combined
from vcjax.diffing.patterns import Pattern
from vcjax.diffing.suggesting import suggestion
from vcjax.tree import storage_dtype

LANES = 8192
"""Sums that the compiled pass keeps side by side; all of them fit into the second-level cache."""

TERMS = 4
"""Products that are added up plainly before they go into a compensated sum. With one, every
product is compensated, at twice the time; with four, the relative error of a sum of squares
of random numbers is 1e-9 and never more than 2e-7, that of a norm half of it."""

ROWS = 128
"""Rows of `LANES` elements that one call of the compiled pass takes, at most."""

BLOCK = ROWS * LANES
"""Elements of one call: 4 MiB of float32 of either side, as much as a chunk. All calls have
this one shape, so that there is one compilation per dtype (0.5 s on a CPU)."""

HOST_BLOCK = 1 << 14
"""Elements that NumPy goes through at once, so that intermediate results stay in its cache."""

SMALLEST = 1e-31
"""Mean squares below this are computed again in float64: XLA's float32 ends at 1e-38, where it
takes numbers for zero on some devices. In a larger mean, what that may hide is less than 1e-7."""

_COMPILED = ("float16", "bfloat16", "float32")


def leaf_statistics(dtype: str, old: Any, new: Any) -> dict[str, Any]:
    """Figures of the difference between two contents of a leaf.

    Floating point numbers of 16 and 32 bits are compared by a compiled function
    with compensated sums (Knuth's two-sum: an error of 2^-22 relative at the very
    most, 1e-9 of random numbers, and none that grows with their number), all
    others by NumPy in float64; differences of integers are exact.

    Args:
        dtype: name of their dtype; keys count as the integers they are made of.
        old: array, any shape.
        new: array of the same shape.

    Returns:
        elements: how many were compared; pairs with a NaN or infinity are left
            out of all norms and products.
        l2: norm of new − old. max_abs: its largest magnitude.
        norm_old, norm_new: norms of the two.
        relative_l2: l2 / norm_old; inf where norm_old is 0 and l2 is not.
        cosine: of the angle between old and new; 1 if both are 0, 0 if one is.
        alignment: cosine of the angle between old and new − old; 0 if either is 0.
        changed, fraction_changed: how many elements differ; 0 and −0 are equal, and
            so are NaN and NaN.
        sign_flips: number of elements whose sign changed; 0 for complex numbers.
        nan_old, nan_new, inf_old, inf_new, nonfinite_old, nonfinite_new: numbers of
            NaN, of infinite, and of either.
        rows, rows_touched, columns, columns_touched, blocks, blocks_touched: of the
            leaf as a matrix (its last axis are the columns; blocks are 64 × 64),
            how many there are, and in how many an element changed.
        coverage: the fraction of the elements that were compared: less than 1 for
            leaves of commits of which some chunks are equal by digest and were not
            read. Norms, products and numbers of NaN are then those of what was;
            l2, max_abs and all counts of changes are exact.
        learning_rate_scale: root mean square of the difference over the elements
            that changed. Adam moves each weight by the learning rate or less per
            step (Kingma & Ba 2015, section 2.1), so this is the learning rate of
            one such step that would have gone this far.
        scale, scale_residual: the factor α for which α · old is nearest to new, and
            |new − α old| / |new − old|.
        update, update_bytes, dense_bytes: see `suggestion`.

    Example:
        >>> figures = leaf_statistics("float32", np.float32([3, 0]), np.float32([3, 4]))
        >>> figures["l2"], figures["norm_old"], figures["fraction_changed"]
        (4.0, 3.0, 0.5)
    """
    shape = np.shape(old)
    pattern = Pattern(shape)
    old, new = np.reshape(old, -1), np.reshape(new, -1)
    figures = block_figures(dtype, old, new)
    pattern.add(0, old, new, figures["changed"])
    return finished(dtype, [figures], pattern)


def finished(dtype: str, blocks: list[dict[str, Any]], pattern: Pattern) -> dict[str, Any]:
    """The figures of a leaf from those of its blocks (`block_figures`) and what they touched.

    Elements in no block are equal on both sides: they were not compared.
    """
    figures = combined(blocks)
    figures |= pattern.figures()
    figures["fraction_changed"] = figures["changed"] / max(1, pattern.elements)
    figures["coverage"] = figures["elements"] / pattern.elements if pattern.elements else 1.0
    figures["elements"] = pattern.elements
    return figures | suggestion(storage_dtype(dtype).itemsize, figures)


def block_figures(dtype: str, old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    """The sums of `leaf_statistics`, of some elements of a leaf.

    Args:
        dtype: name of their dtype.
        old: flat array, of any size.
        new: of the same size.
    """
    return combined([_piece(dtype, a, b) for a, b in _cut(old, new, BLOCK)])


def _cut(old: np.ndarray, new: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, max(1, old.size), size):
        yield old[start : start + size], new[start : start + size]


def _piece(dtype: str, old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    if storage_dtype(dtype).name in _COMPILED and old.size:
        figures = _compiled(old, new)
        if figures is not None:
            return figures
    return combined([_on_host(a, b) for a, b in _cut(old, new, HOST_BLOCK)])


# -- the compiled pass ---------------------------------------------------------

_buffers = threading.local()


@cache
def _cpu() -> Any:
    return jax.local_devices(backend="cpu")[0]


def _rows(side: str, array: np.ndarray) -> jax.Array:
    """Up to `BLOCK` elements as `[ROWS, LANES]`: as they are, or in a buffer that is used again.

    The buffer holds zeros behind them, as far as the compiled pass goes.
    """
    if array.size == BLOCK and array.ctypes.data % 64 == 0:
        return jax.device_put(array.reshape(ROWS, LANES), _cpu())  # no copy
    held = _buffers.__dict__.setdefault(f"{side} {array.dtype.name}", None)
    if held is None:
        held = aligned(BLOCK, array.dtype)
        _buffers.__dict__[f"{side} {array.dtype.name}"] = held
    held[: array.size] = array
    held[array.size : _steps(array.size) * TERMS * LANES] = 0
    return jax.device_put(held.reshape(ROWS, LANES), _cpu())


def _steps(size: int) -> int:
    return -(-size // (TERMS * LANES))


def _compiled(old: np.ndarray, new: np.ndarray) -> dict[str, Any] | None:
    """Figures of at most `BLOCK` elements; None where float32 does not do."""
    steps = np.int32(_steps(old.size))
    sums, top, counts = jax.device_get(_pass(_rows("old", old), _rows("new", new), steps))
    with np.errstate(invalid="ignore"):  # infinities of both signs, which are looked for below
        squares, squares_old, squares_new, product = (
            float(np.sum(high, dtype=np.float64) + np.sum(low, dtype=np.float64))
            for high, low in sums
        )
    least = SMALLEST * old.size
    if not math.isfinite(squares + squares_old + squares_new):  # NaN, infinity, or overflow
        return None
    changed = int(np.sum(counts & 0xFFFF, dtype=np.int64))
    if changed and squares < least:
        return None
    for total, array in ((squares_old, old), (squares_new, new)):
        if total < least and array.view(f"u{array.dtype.itemsize}").any():
            return None
    if min(squares_old, squares_new) < 1e-6 * max(squares_old, squares_new):
        return None  # what the cosine is made of would cancel
    l2, norm_old, norm_new = map(math.sqrt, (squares, squares_old, squares_new))
    alignment = product / norm_old / l2 if norm_old and l2 else 0.0
    cosine = float(norm_old == norm_new)
    if norm_old and norm_new:
        cosine = (squares_old + squares_new - squares) / (2 * norm_old * norm_new)
    return {
        **_nothing(old.size),
        "l2": l2,
        "norm_old": norm_old,
        "norm_new": norm_new,
        "cosine": min(1.0, max(-1.0, cosine)),
        "alignment": min(1.0, max(-1.0, alignment)),
        "max_abs": float(np.max(top)),
        "changed": changed,
        "sign_flips": int(np.sum(counts >> 16, dtype=np.int64)),
    }


def _nothing(elements: int) -> dict[str, Any]:
    names = ("sign_flips", "nan_old", "nan_new", "inf_old", "inf_new")
    return {"elements": elements, **dict.fromkeys(names, 0)}


@jax.jit
def _pass(old: jax.Array, new: jax.Array, steps: jax.Array) -> Any:
    """Sums over the first rows of two arrays `[ROWS, LANES]`, one per lane, all in one loop.

    Equality and signs are read off the bits, as XLA may take the smallest numbers
    for zero.

    Args:
        old: the one.
        new: the other.
        steps: how many times `TERMS` rows are gone through.

    Returns:
        Of new − old, old, new and old · (new − old): (sum of squares or products,
        what rounding took from it); the largest |new − old|; and how many elements
        changed + 2^16 times how many changed their sign. All `[LANES]`.
    """

    def body(step: Any, carry: Any) -> Any:
        sums, top, counts = carry
        rows = [_row(old[step * TERMS + term], new[step * TERMS + term]) for term in range(TERMS)]
        for _, largest, count in rows:
            top, counts = jnp.maximum(top, largest), counts + count
        terms = [reduce(add, products) for products in zip(*(r[0] for r in rows), strict=True)]
        pairs = zip(sums, terms, strict=True)
        sums = tuple(_two_sum(total, lost, term) for (total, lost), term in pairs)
        return sums, top, counts

    zero = jnp.zeros(old.shape[1], jnp.float32)
    start = ((zero, zero),) * 4, zero, jnp.zeros(old.shape[1], jnp.uint32)
    return jax.lax.fori_loop(jnp.int32(0), steps, body, start)


def _row(x: jax.Array, y: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """Products, |difference| and packed counts of one row of elements."""
    width = 8 * x.dtype.itemsize
    unsigned = jnp.uint32 if width == 32 else jnp.uint16
    one = unsigned(1)
    b_x, b_y = (jax.lax.bitcast_convert_type(values, unsigned) for values in (x, y))
    nonzero_x, nonzero_y = b_x << one != 0, b_y << one != 0
    changed = (b_x != b_y) & (nonzero_x | nonzero_y)
    flipped = ((b_x ^ b_y) >> unsigned(width - 1) != 0) & nonzero_x & nonzero_y
    counts = changed.astype(jnp.uint32) + (flipped.astype(jnp.uint32) << jnp.uint32(16))
    a, b = x.astype(jnp.float32), y.astype(jnp.float32)
    d = b - a
    return (d * d, a * a, b * b, a * d), jnp.abs(d), counts


def _two_sum(total: jax.Array, lost: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`total + term`, and what rounding has taken from it so far (Knuth, TAOCP 2, 4.2.2)."""
    found = total + term
    part = found - total
    return found, lost + ((total - (found - part)) + (term - part))


# -- the same by NumPy ---------------------------------------------------------


def _on_host(old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    """The figures of a few elements, in float64.

    Squares are taken of numbers divided by the largest one: without that a
    difference of 1e-200 would vanish, and one of 1e200 overflow. Where differences
    themselves overflow, all are halved.
    """
    complex_ = "complex" in old.dtype.name
    a, b = (x.astype(np.complex128 if complex_ else np.float64) for x in (old, new))
    nan_old, nan_new = np.isnan(a), np.isnan(b)
    finite_old, finite_new = np.isfinite(a), np.isfinite(b)
    changed = (old != new) & ~(nan_old & nan_new)
    a[~(finite_old & finite_new)] = b[~(finite_old & finite_new)] = 0
    factor = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        if old.dtype.kind in "iu" and old.dtype.itemsize == 8:
            # As float64, neighbours would be equal. uint64 counts modulo 2^64.
            one, other = old.view(np.uint64), new.view(np.uint64)
            size = np.where(new >= old, other - one, one - other).astype(np.float64)
            difference = np.where(new >= old, size, -size)
        else:
            difference = b - a
        if not np.isfinite(difference).all():
            factor = 0.5
            difference = b * factor - a * factor
        largest = float(np.max(np.abs(difference), initial=0)) / factor
    (top_d, unit_d), (top_a, unit_a), (top_b, unit_b) = map(_scaled, (difference, a, b))
    l2, norm_a, norm_b = (math.sqrt(float(unit @ unit)) for unit in (unit_d, unit_a, unit_b))
    counts = {
        "nan_old": nan_old,
        "nan_new": nan_new,
        "inf_old": ~finite_old & ~nan_old,
        "inf_new": ~finite_new & ~nan_new,
    }
    return {
        **_nothing(old.size),
        "l2": top_d / factor * l2,
        "norm_old": top_a * norm_a,
        "norm_new": top_b * norm_b,
        "cosine": _cosine(unit_a, unit_b, norm_a, norm_b, float(norm_a == norm_b)),
        "alignment": _cosine(unit_a, unit_d, norm_a, l2, 0.0),
        "max_abs": largest,
        "changed": int(np.sum(changed)),
        "sign_flips": 0 if complex_ else int(np.sum(np.sign(a) * np.sign(b) < 0)),
        **{name: int(np.sum(found)) for name, found in counts.items()},
    }


def _scaled(values: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest magnitude, and the values divided by it; complex ones as pairs of reals."""
    reals = values.view(np.float64)
    top = float(np.max(np.abs(reals), initial=0))
    return top, reals / (top or 1)


def _cosine(a: np.ndarray, b: np.ndarray, norm_a: float, norm_b: float, other: float) -> float:
    """Of the angle between two vectors of these norms; `other` where one of them is zero."""
    if norm_a == 0 or norm_b == 0:
        return other
    return min(1.0, max(-1.0, float(a @ b) / norm_a / norm_b))
