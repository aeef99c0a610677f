"""The array dtypes that vcjax knows: their names, and their canonical bytes.

Free of JAX, so that reading history stays light. A dtype is known by its
NumPy or ml_dtypes name. In canonical bytes every element has its dtype's own
width in NumPy, little-endian; dtypes of less than one byte take a whole byte,
sign-extended for signed integers and zero-extended for all others. (ml_dtypes
sign-extends what it makes itself, JAX hands out zero-extended bytes, and both
ignore the upper bits when reading, so those bits must not reach a digest.)
"""

import functools
import re

import ml_dtypes
import numpy as np

from vcjax import errors

_NUMPY = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

_ML_DTYPES = (
    *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
    *("int1", "int2", "int4", "uint1", "uint2", "uint4", "complex32", "bcomplex32"),
)

_DTYPES: dict[str, np.dtype] = {name: np.dtype(name) for name in _NUMPY} | {
    name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_DTYPES if hasattr(ml_dtypes, name)
}

_KEY = re.compile(r"key<([^<>]+)>")

_SUB_BYTE = re.compile(r"(u?int|float)([1246])(?:_|\Z)")

_RANKS = {"bool": 0, "int": 1, "uint": 1, "float": 2, "bfloat": 2, "complex": 3, "bcomplex": 3}


def names() -> tuple[str, ...]:
    """The names of all array dtypes that can be stored, PRNG keys aside."""
    return tuple(_DTYPES)


def storage_dtype(name: str) -> np.dtype:
    """The NumPy dtype of the canonical bytes of a leaf of dtype `name`.

    Args:
        name: as in `LeafSpec.dtype`; "key<IMPL>" is stored as its uint32 words.

    Raises:
        UnknownFormatError: no such dtype.

    Example:
        >>> storage_dtype("key<threefry2x32>")
        dtype('uint32')
    """
    if dtype := _DTYPES.get(name):
        return dtype
    if key_impl(name) is not None:
        return _DTYPES["uint32"]
    raise errors.UnknownFormatError(
        f"unknown array dtype {name!r}",
        hint="upgrade vcjax and ml_dtypes: what wrote this knew more dtypes",
    )


def itemsize(name: str) -> int:
    """Bytes that one element of dtype `name` takes in canonical bytes."""
    return storage_dtype(name).itemsize


@functools.cache  # `np.dtype.name` is computed anew each time, 5 µs
def dtype_name(dtype: np.dtype) -> str:
    """The name under which arrays of `dtype` (of either byte order) are stored.

    Raises:
        UnsupportedLeafError: arrays of this dtype cannot be stored.
    """
    if dtype.name in _DTYPES and dtype.names is None:
        return dtype.name
    raise errors.UnsupportedLeafError(
        f"arrays of dtype {dtype} cannot be stored", hint=_advice(dtype)
    )


def _advice(dtype: np.dtype) -> str:
    if dtype.names is not None:
        return "store the fields as separate arrays of a dict"
    if dtype.kind in "SUT":
        return "use a list of str, or encode the text into a uint8 array"
    if dtype.kind in "mM":
        return "store it as int64: `x.view('int64')`"
    if dtype.kind in "fc":
        return "cast it to float64 or complex128: its width differs between machines"
    return "convert it to an array of numbers, or split it into several leaves"


def key_impl(name: str) -> str | None:
    """The PRNG implementation in a dtype name: "rbg" of "key<rbg>", None of "float32"."""
    match = _KEY.fullmatch(name)
    return match[1] if match else None


def rank(name: str) -> int:
    """0 for bool, 1 for integers, 2 for floats, 3 for complex numbers.

    Numbers convert to an equal or higher rank without losing their kind.
    """
    return _RANKS[re.split(r"\d", name, maxsplit=1)[0]]


def is_inexact(name: str) -> bool:
    """Whether this is a dtype of floating point or complex numbers."""
    return key_impl(name) is None and rank(name) >= 2


def normalise(array: np.ndarray) -> np.ndarray:
    """The same values, each in the one byte pattern that stands for it.

    Only bool and the dtypes of less than a byte have several patterns for
    a value; all other arrays are given back as they are.

    Args:
        array: C-contiguous, of a dtype in `names`.
    """
    if array.dtype == np.bool_:
        raw = array.view(np.uint8)
        return array if raw.max(initial=0) <= 1 else (raw != 0)
    match = _SUB_BYTE.match(dtype_name(array.dtype))
    if match is None:
        return array
    bits = int(match[2])
    # Shifts wrap within a byte, so this is the same for every value of the upper bits.
    raw = np.left_shift(array.view(np.uint8), 8 - bits, dtype=np.uint8)
    signed = raw.view(np.int8) if match[1] == "int" else raw
    return np.asarray(np.right_shift(signed, 8 - bits)).view(array.dtype)
