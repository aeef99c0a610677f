"""Figures of the difference of two leaves, in one pass over both, block by block."""

import math
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Inexact, Shaped

from vcjax.diffing import kernel
from vcjax.diffing.modules import combined
from vcjax.diffing.patterns import Pattern
from vcjax.diffing.storage_suggestion import suggestion
from vcjax.tree import storage_dtype

HOST_BLOCK = 1 << 14
"""Elements that NumPy goes through at once, so that intermediate results stay in its cache. Of no
more than these it is as fast as a call of the compiled pass (0.3 ms), and need not be compiled."""

SMALLEST = 1e-31
"""Mean squares below this are computed again in float64: XLA's float32 ends at 1e-38, where it
takes numbers for zero on some devices. In a larger mean, what that may hide is less than 1e-7."""


OF_WHOLE_LEAVES = (
    *("norm_old", "norm_new", "relative_l2", "cosine", "alignment", "scale", "scale_residual"),
    *("nan_old", "nan_new", "inf_old", "inf_new", "nonfinite_old", "nonfinite_new"),
)
"""The figures that what is equal on both sides has a part in. Of a leaf that was not read as a
whole a diff has None in their place; all others are those of the whole leaf in any case."""


def leaf_statistics(
    dtype: str, old: Shaped[ArrayLike, "*shape"], new: Shaped[ArrayLike, "*shape"]
) -> dict[str, Any]:
    """Figures of the difference between two contents of a leaf.

    Floating point numbers of 16 and 32 bits are compared by a compiled function:
    sixteen products at a time are added up in float32, and these sums in float64
    (an error of 3e-7 relative at the very most, 1e-9 of random numbers, and none
    that grows with their number); all others, and those of small leaves, by NumPy
    in float64. Differences of integers are exact.

    Args:
        dtype: name of their dtype; keys count as the integers they are made of.
        old: the one.
        new: the other.

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
        coverage: the fraction of the elements that were read: less than 1 for leaves
            of commits of which some chunks are equal by digest. A diff has None for
            `OF_WHOLE_LEAVES` then.
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
    pattern.add(0, old, new, figures)
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


def block_figures(
    dtype: str, old: Shaped[np.ndarray, " elements"], new: Shaped[np.ndarray, " elements"]
) -> dict[str, Any]:
    """The sums of `leaf_statistics`, of some elements of a leaf.

    Args:
        dtype: name of their dtype.
        old: the ones.
        new: the others.
    """
    if storage_dtype(dtype).name not in kernel.DTYPES or old.size <= HOST_BLOCK:
        return _by_numpy(old, new)
    return combined([_block(block) for block in kernel.blocks(old, new)])


def _block(block: kernel.Block) -> dict[str, Any]:
    found = _compiled(block)
    return _by_numpy(block.old, block.new) if found is None else found


def _compiled(block: kernel.Block) -> dict[str, Any] | None:
    """Figures of a block; None where float32 does not do."""
    sums, size = kernel.sums(block), block.old.size
    least = SMALLEST * size
    if not math.isfinite(sums.difference + sums.old + sums.new):  # NaN, infinity, or overflow
        return None
    if sums.changed and sums.difference < least:
        return None
    for total, array in ((sums.old, block.old), (sums.new, block.new)):
        if total < least and array.view(f"u{array.dtype.itemsize}").any():
            return None
    if min(sums.old, sums.new) < 1e-6 * max(sums.old, sums.new):
        return None  # what the cosine is made of would cancel
    l2, norm_old, norm_new = map(math.sqrt, (sums.difference, sums.old, sums.new))
    alignment = sums.product / norm_old / l2 if norm_old and l2 else 0.0
    cosine = float(norm_old == norm_new)
    if norm_old and norm_new:
        cosine = (sums.old + sums.new - sums.difference) / (2 * norm_old * norm_new)
    return {
        **_nothing(size),
        "l2": l2,
        "norm_old": norm_old,
        "norm_new": norm_new,
        "cosine": min(1.0, max(-1.0, cosine)),
        "alignment": min(1.0, max(-1.0, alignment)),
        "max_abs": sums.largest,
        "changed": sums.changed,
        "sign_flips": sums.flips,
    }


def _nothing(elements: int) -> dict[str, Any]:
    names = ("sign_flips", "nan_old", "nan_new", "inf_old", "inf_new")
    return {"elements": elements, **dict.fromkeys(names, 0)}


# -- the same by NumPy ---------------------------------------------------------


def _by_numpy(
    old: Shaped[np.ndarray, " elements"], new: Shaped[np.ndarray, " elements"]
) -> dict[str, Any]:
    starts = range(0, max(1, old.size), HOST_BLOCK)
    parts = (slice(start, start + HOST_BLOCK) for start in starts)
    return combined([_on_host(old[part], new[part]) for part in parts])


def _on_host(
    old: Shaped[np.ndarray, " elements"], new: Shaped[np.ndarray, " elements"]
) -> dict[str, Any]:
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


def _scaled(
    values: Inexact[np.ndarray, " elements"],
) -> tuple[float, Float[np.ndarray, " reals"]]:
    """The largest magnitude, and the values divided by it; complex ones as pairs of reals."""
    reals = values.view(np.float64)
    top = float(np.max(np.abs(reals), initial=0))
    return top, reals / (top or 1)


def _cosine(
    a: Float[np.ndarray, " reals"],
    b: Float[np.ndarray, " reals"],
    norm_a: float,
    norm_b: float,
    other: float,
) -> float:
    """Of the angle between two vectors of these norms; `other` where one of them is zero."""
    if norm_a == 0 or norm_b == 0:
        return other
    return min(1.0, max(-1.0, float(a @ b) / norm_a / norm_b))
