"""Figures of the difference of two leaves, in one fused pass over both."""

import functools
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.tree import storage_dtype

TILE = 4096
"""Elements per partial sum. Partial sums are float32; they are added up in float64."""


def leaf_statistics(dtype: str, old: Any, new: Any) -> dict[str, float]:
    """Figures of the difference between two contents of a leaf.

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
        sign_flips: number of elements whose sign changed.
        nonfinite_old, nonfinite_new: numbers of NaN and infinite elements; pairs
            with one are left out of all sums.
    """
    old, new = np.reshape(old, -1), np.reshape(new, -1)
    elements = max(1, old.size)
    kind = storage_dtype(dtype)
    if kind.kind == "c":
        old, new = _interleaved(old), _interleaved(new)
    elif kind.itemsize == 8 or kind.kind in "iub" or kind.name.startswith(("int", "uint")):
        # 64-bit values and integers would be rounded by JAX's float32.
        old, new = old.astype(np.float64), new.astype(np.float64)
    if old.dtype == np.float64:
        return _combine(elements, *_partials(_tiles(old), _tiles(new), np))
    return _combine(elements, *_jitted(_tiles(old), _tiles(new)))


def _interleaved(array: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs of reals: norms and inner products are the same."""
    return array.view(np.float32 if array.dtype == np.complex64 else np.float64)


def _tiles(array: np.ndarray) -> np.ndarray:
    """A flat array in rows of `TILE`, zeros after the end; few shapes mean few compilations."""
    rows = max(1, math.ceil(array.size / TILE))
    if array.size % TILE or array.size == 0:
        padded = np.zeros(rows * TILE, array.dtype)
        padded[: array.size] = array
        array = padded
    return array.reshape(rows, TILE)


def _partials(old: Any, new: Any, xp: ModuleType) -> tuple[Any, ...]:
    """Per-tile sums. Squares are taken of numbers scaled by the tile's largest one.

    Without the scaling a difference of 1e-20 would vanish, and one of 1e20 overflow.
    """
    wide = xp.float64 if xp is np else xp.float32
    old, new = old.astype(wide), new.astype(wide)
    finite_old, finite_new = xp.isfinite(old), xp.isfinite(new)
    both = finite_old & finite_new
    a, b = xp.where(both, old, 0), xp.where(both, new, 0)
    difference = b - a
    changed = (old != new) & ~(xp.isnan(old) & xp.isnan(new))

    def scaled(values: Any) -> tuple[Any, Any]:
        top = xp.max(xp.abs(values), axis=1, keepdims=True)
        return top[:, 0], values / xp.where(top == 0, 1, top)

    top_d, unit_d = scaled(difference)
    top_a, unit_a = scaled(a)
    top_b, unit_b = scaled(b)
    return (
        (top_d, xp.sum(unit_d * unit_d, axis=1)),
        (top_a, xp.sum(unit_a * unit_a, axis=1)),
        (top_b, xp.sum(unit_b * unit_b, axis=1)),
        xp.sum(unit_a * unit_b, axis=1),
        xp.sum(changed, axis=1),
        xp.sum(xp.sign(a) * xp.sign(b) < 0, axis=1),
        xp.sum(~finite_old, axis=1),
        xp.sum(~finite_new, axis=1),
    )


_jitted = jax.jit(functools.partial(_partials, xp=jnp))


def _norm(tops: np.ndarray, sums: np.ndarray) -> float:
    largest = float(np.max(tops))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(math.fsum((tops / largest) ** 2 * sums))


def _combine(
    elements: int, difference: Any, old: Any, new: Any, dots: Any, *counts: Any
) -> dict[str, float]:
    pairs = [
        (np.asarray(t, np.float64), np.asarray(s, np.float64)) for t, s in (difference, old, new)
    ]
    l2, norm_old, norm_new = (_norm(*pair) for pair in pairs)
    changed, flips, nonfinite_old, nonfinite_new = (int(np.sum(np.asarray(c))) for c in counts)
    return {
        "l2": l2,
        "relative_l2": l2 / norm_old if norm_old else (math.inf if l2 else 0.0),
        "max_abs": float(np.max(pairs[0][0])),
        "cosine": _cosine(
            pairs[1][0], pairs[2][0], np.asarray(dots, np.float64), norm_old, norm_new
        ),
        "norm_old": norm_old,
        "norm_new": norm_new,
        "fraction_changed": changed / elements,
        "sign_flips": flips,
        "nonfinite_old": nonfinite_old,
        "nonfinite_new": nonfinite_new,
    }


def _cosine(
    tops_old: np.ndarray, tops_new: np.ndarray, dots: np.ndarray, norm_old: float, norm_new: float
) -> float:
    if norm_old == 0 or norm_new == 0:
        return 1.0 if norm_old == norm_new else 0.0
    cosine = math.fsum((tops_old / norm_old) * (tops_new / norm_new) * dots)
    return min(1.0, max(-1.0, cosine))
