"""Whether stored leaves fit the leaves of a tree that they are to be restored into."""

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vcjax import errors
from vcjax.tree import dtypes
from vcjax.tree.leaf import PYTHON_TYPES, key_dtype
from vcjax.tree.spec import LeafSpec

_LISTED = 20  # close matches are sought for as many leaves as StructureError lists
_COMPARED = 1000  # a comparison takes about 50 µs, and a tree may have 100,000 leaves


def check(
    stored: Mapping[str, LeafSpec],
    targets: Mapping[str, PyTree],
    *,
    strict: bool,
    name: str = "like=",
    part: str = "name those that you want with paths=",
) -> None:
    """Raises unless every target has a stored leaf that fits it.

    Args:
        stored: specs by leaf path.
        targets: `Template.targets`.
        strict: whether a stored leaf without a target is an error.
        name: what the caller knows the targets by.
        part: how a caller leaves stored leaves out.

    Raises:
        StructureError: with one line per leaf that is missing, extra or does not fit.
    """
    missing = [path for path in targets if path not in stored]
    extra = [path for path in stored if path not in targets]
    problems = []
    for path, target in targets.items():
        if path in stored and (reason := mismatch(stored[path], target, name)):
            problems.append(f"{path}: {reason}")
    for count, path in enumerate(missing):
        close = _close(path, extra) if count < _LISTED else ""
        problems.append(f"{path}: missing, {name} has {_describe(targets[path])}{close}")
    if strict:
        problems += [f"{path}: extra, stored {stored[path]}" for path in extra]
    if problems:
        raise errors.StructureError(
            f"the stored tree does not fit {name}",
            problems=problems,
            hint=_hint(missing, extra if strict else [], name, part),
        )


def _hint(missing: list[str], extra: list[str], name: str, part: str) -> str:
    if missing:
        return f"remove or rename these leaves in {name}, or restore without {name}"
    if extra:
        return f"add these leaves to {name}, or {part} to leave them out"
    return f"give {name} the stored shapes, and dtypes that the stored ones can be cast to"


def _close(path: str, candidates: Sequence[str]) -> str:
    name = path.rpartition("/")[2]
    alike = [other for other in candidates if other.rpartition("/")[2] == name]
    for pool in (alike, candidates):
        if found := difflib.get_close_matches(path, pool[:_COMPARED], n=2, cutoff=0.6):
            return f" (stored is {' and '.join(found)})"
    return ""


def _describe(target: PyTree) -> str:
    spec = target_spec(target)
    return str(spec) if spec else f"a {type(target).__qualname__}"


def mismatch(stored: LeafSpec, target: PyTree, name: str = "like=") -> str | None:
    """Why a leaf cannot be restored into `target`, or None if it can."""
    wanted = target_spec(target)
    if wanted is None:
        return f"stored {stored}, {name} has a {type(target).__qualname__}, which is no array"
    if _fits(stored, wanted):
        return None
    why = "" if stored.shape != wanted.shape else ", to which that does not convert"
    return f"stored {stored}, {name} has {wanted}{why}"


def _fits(stored: LeafSpec, wanted: LeafSpec) -> bool:
    if stored.shape != wanted.shape:
        return False
    if stored.dtype == wanted.dtype:
        return True
    words = [s.dtype for s in (stored, wanted) if dtypes.key_impl(s.dtype) is None]
    if len(words) < 2:
        return words == ["uint32"]
    if {"str", "bytes"} & set(words):
        return False
    return dtypes.rank(stored.dtype) <= dtypes.rank(wanted.dtype)


def target_spec(target: PyTree) -> LeafSpec | None:
    """What a leaf of a `like=` tree asks for; None if that can be no leaf.

    Anything with a shape and a dtype is an array target, and a `jax.Array` one
    unless it is NumPy's.
    """
    if type(target) in PYTHON_TYPES:
        return LeafSpec(type(target).__name__, (), "python")
    if isinstance(target, np.str_ | np.bytes_):
        return LeafSpec("str" if isinstance(target, np.str_) else "bytes", (), "python")
    if not (hasattr(target, "shape") and hasattr(target, "dtype")):
        return None
    if jnp.issubdtype(target.dtype, jax.dtypes.extended):
        return _key_spec(tuple(target.shape), target.dtype)
    try:
        name = dtypes.dtype_name(np.dtype(target.dtype))
    except errors.UnsupportedLeafError:
        return None
    if isinstance(target, np.generic):
        return LeafSpec(name, (), "scalar")
    return LeafSpec(name, tuple(target.shape), "numpy" if isinstance(target, np.ndarray) else "jax")


@lru_cache
def _key_spec(shape: tuple[int, ...], dtype: DTypeLike) -> LeafSpec | None:
    name = key_dtype(dtype)
    if name is None:
        return None
    words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
    return LeafSpec(name, words.shape, "jax")
