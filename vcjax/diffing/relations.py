"""What was kept of a leaf that was made over: cast, transposed, grown, permuted, …"""

from collections.abc import Iterator
from itertools import permutations
from typing import Literal

import numpy as np

from vcjax.diffing.contents import Content, flat, whole
from vcjax.diffing.treediff import LeafChange, Relation
from vcjax.tree import LeafSpec, itemsize, key_impl, storage_dtype

WHOLE_BYTES = 256 * 1024 * 1024
"""Leaves larger than this, both sides together, are not held whole: of them only casts,
reshapes and growth along the first axis are recognised, which need no more than a stream."""

MOST_AXES = 4
"""Transpositions of more axes are not sought: there are 120 of five."""

Found = tuple[Relation, str] | None
"""(relation, note) of a `LeafChange`."""

_Relation = Relation | Literal[""]


def kept(change: LeafChange, old: Content, new: Content) -> Found:
    """What was kept of a leaf whose dtype or shape changed; None if nothing was found.

    Shapes say which relations are possible; contents then settle which holds, and
    reading ends at the first element that contradicts.

    Args:
        change: of a leaf that is on both sides.
        old: contents of the old side.
        new: of the new one.
    """
    one, other = change.old, change.new
    assert one is not None
    assert other is not None
    if one.is_value or other.is_value or key_impl(one.dtype) or key_impl(other.dtype):
        return None
    origin = change.old_path if change.old_path is not None else change.path
    sides = (old, origin, one), (new, change.path, other)
    if not np.prod(one.shape) or not np.prod(other.shape):
        return None
    if one.shape == other.shape:
        return _phrased("", "", _streamed(*sides))
    size = _size(one), _size(other)
    if size[0] == size[1] and (how := _streamed(*sides)) is not None:
        return _phrased("reshaped", f"reshaped, {_order(one, other)}", how)
    grown = _growth(one.shape, other.shape)
    if grown == (0,):
        how = _streamed(*sides)
        if how is not None:
            return _phrased(*_grown_words(one.shape, other.shape), how)
    if size[0] * itemsize(one.dtype) + size[1] * itemsize(other.dtype) > WHOLE_BYTES:
        return None
    before, after = whole(*sides[0]), whole(*sides[1])
    if size[0] == size[1]:
        return _transposed(before, after)
    return _grown(before, after) if len(one.shape) == len(other.shape) else None


def permutation(change: LeafChange, old: Content, new: Content) -> Found:
    """Whether a leaf of the same dtype and shape has only been rearranged.

    The norm of what was rearranged is what it was: only then are contents read once more.

    Args:
        change: with `stats`.
        old: contents of the old side.
        new: of the new one.
    """
    stats, spec = change.stats, change.new
    assert stats is not None
    assert spec is not None
    least = 1e-9 * max(stats["norm_old"], stats["norm_new"])
    if abs(stats["norm_old"] - stats["norm_new"]) > least or not stats["changed"]:
        return None
    if len(spec.shape) < 2 or stats["rows"] < 2 or stats["columns"] < 2:
        return None
    if 2 * _size(spec) * itemsize(spec.dtype) > WHOLE_BYTES:
        return None
    origin = change.old_path if change.old_path is not None else change.path
    before, after = whole(old, origin, spec), whole(new, change.path, spec)
    if found := _transposed(before, after):
        return found
    matrix = before.reshape(-1, spec.shape[-1]), after.reshape(-1, spec.shape[-1])
    if _same_rows(*matrix):
        return "permuted", "permuted rows"
    if _same_rows(matrix[0].T, matrix[1].T):
        return "permuted", "permuted columns"
    return None


def _size(spec: LeafSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64))


def _order(one: LeafSpec, other: LeafSpec) -> str:
    return "the same numbers in the same order" if one.dtype == other.dtype else "in the same order"


# -- casts ---------------------------------------------------------------------


class _Cast:
    """Whether numbers of one dtype are those of another, as far as they have been seen."""

    def __init__(self, old: np.dtype, new: np.dtype):
        self.old, self.new = old, new
        self.down = self.up = True

    def see(self, old: np.ndarray, new: np.ndarray) -> bool:
        """Takes note of some elements; False if neither is a cast of the other."""
        with np.errstate(all="ignore"):
            self.down = self.down and _equal(old.astype(self.new), new)
            self.up = self.up and _equal(new.astype(self.old), old)
        return self.down or self.up

    def words(self) -> tuple[_Relation, str]:
        """(relation, note)."""
        if self.old == self.new:
            return "", ""
        if self.down and self.up:
            return "cast", f"cast to {self.new.name}"
        if self.down:
            return "rounded", f"{self.new.name} of the same values"
        return "rounded", f"{self.new.name} of what was rounded to {self.old.name}"


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.kind in "iub":
        return bool(np.array_equal(one, other))
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _phrased(relation: _Relation, note: str, cast: "_Cast | None") -> Found:
    if cast is None:
        return None
    relation_of_cast, note_of_cast = cast.words()
    relation = relation or relation_of_cast
    note = ", ".join(filter(None, (note, note_of_cast)))
    return (relation, note) if relation else None


def _dtypes(old: tuple[Content, str, LeafSpec], new: tuple[Content, str, LeafSpec]) -> _Cast:
    return _Cast(storage_dtype(old[2].dtype), storage_dtype(new[2].dtype))


def _streamed(
    old: tuple[Content, str, LeafSpec], new: tuple[Content, str, LeafSpec]
) -> _Cast | None:
    """Compares two leaves in C order, as far as the shorter one goes; None if they differ."""
    cast = _dtypes(old, new)
    for before, after in _in_step(flat(*old), flat(*new)):
        if not cast.see(before, after):
            return None
    return cast


def _in_step(
    one: Iterator[tuple[int, np.ndarray]], other: Iterator[tuple[int, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of equal length of two streams that are cut differently."""
    a = b = np.empty(0)
    while True:
        if not a.size:
            _, a = next(one, (0, None))
        if not b.size:
            _, b = next(other, (0, None))
        if a is None or b is None:
            return
        size = min(a.size, b.size)
        yield a[:size], b[:size]
        a, b = a[size:], b[size:]


# -- shapes --------------------------------------------------------------------


def _growth(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes that have another length, if they all grew or all shrank."""
    if len(old) != len(new):
        return None
    axes = tuple(axis for axis, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    signs = {new[axis] > old[axis] for axis in axes}
    if len(signs) != 1:
        return None
    return axes


def _grown_words(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[_Relation, str]:
    parts = []
    for axis, (a, b) in enumerate(zip(old, new, strict=True)):
        if a != b:
            parts.append(f"{abs(b - a):,} {_axis_name(axis, len(old), abs(b - a))}")
    told = f"{' and '.join(parts)}, the rest equal"
    return ("grown", f"grew {told}") if sum(new) > sum(old) else ("shrunk", f"lost {told}")


def _axis_name(axis: int, axes: int, number: int) -> str:
    plural = "" if number == 1 else "s"
    if axes == 1:
        return f"element{plural}"
    if axis == 0:
        return f"row{plural}"
    return f"column{plural}" if axis == axes - 1 else f"along axis {axis}"


def _grown(before: np.ndarray, after: np.ndarray) -> Found:
    if _growth(before.shape, after.shape) is None:
        return None
    common = tuple(slice(min(pair)) for pair in zip(before.shape, after.shape, strict=True))
    cast = _Cast(before.dtype, after.dtype)
    if not cast.see(before[common], after[common]):
        return None
    return _phrased(*_grown_words(before.shape, after.shape), cast)


def _transposed(before: np.ndarray, after: np.ndarray) -> Found:
    if before.ndim != after.ndim or not 2 <= before.ndim <= MOST_AXES:
        return None
    for axes in permutations(range(before.ndim)):
        if axes == tuple(range(before.ndim)):
            continue
        turned = before.transpose(axes)
        if turned.shape != after.shape:
            continue
        cast = _Cast(before.dtype, after.dtype)
        # One slice tells nearly all that are no transposition apart.
        if cast.see(turned[:1], after[:1]) and cast.see(turned, after):
            swapped = before.ndim == 2
            words = "transposed" if swapped else f"transposed to axes {', '.join(map(str, axes))}"
            return _phrased("transposed", words, cast)
    return None


def _same_rows(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the rows of one matrix are those of another in some order, bit by bit."""
    one, other = _row_hashes(before), _row_hashes(after)
    order, there = np.argsort(one, kind="stable"), np.argsort(other, kind="stable")
    if not np.array_equal(one[order], other[there]):
        return False
    step = max(1, (1 << 20) // before.shape[1])
    for start in range(0, len(order), step):
        part = slice(start, start + step)
        a, b = (np.ascontiguousarray(x) for x in (before[order[part]], after[there[part]]))
        if a.tobytes() != b.tobytes():
            return False
    return True


def _row_hashes(matrix: np.ndarray) -> np.ndarray:
    """A 64-bit number per row: its bits times fixed random odd numbers, added modulo 2^64."""
    words = f"u{min(8, matrix.dtype.itemsize)}"
    factors = np.random.default_rng(0).integers(0, 2**64, matrix.shape[1], np.uint64) | np.uint64(1)
    hashes = np.empty(len(matrix), np.uint64)
    step = max(1, (1 << 20) // matrix.shape[1])
    for start in range(0, len(matrix), step):
        part = np.ascontiguousarray(matrix[start : start + step])
        bits = part.view(words).reshape(len(part), -1).astype(np.uint64)
        if bits.shape[1] != len(factors):  # complex128: two words per element
            bits = bits[:, ::2] ^ (bits[:, 1::2] * np.uint64(0x9E3779B97F4A7C15))
        hashes[start : start + step] = (bits * factors).sum(1, dtype=np.uint64)
    return hashes
