"""What zarr metadata of a stored array may say: checked before any memory is spent on it."""

import itertools
from collections.abc import Mapping
from typing import Any

from vcjax.hashing import chunk_shape
from vcjax.history import canonical
from vcjax.history.manifest import check_shape
from vcjax.tree import storage_dtype

ZARR_DTYPES = frozenset(
    [
        *("bool", "int2", "int4", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e3m4", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn"),
    ]
)
"""The dtypes that TensorStore's zarr3 driver has; leaves of other dtypes are stored as
unsigned integers of their width."""

CODECS = ("bytes", "blosc", "crc32c")
"""What chunks are encoded by; other codecs may claim sizes of their own."""


def zarr_dtype(dtype: str) -> str:
    """The zarr v3 data type that a leaf of this dtype is stored as."""
    kind = storage_dtype(dtype)
    return kind.name if kind.name in ZARR_DTYPES else f"uint{8 * kind.itemsize}"


def chunk_grid(shape: tuple[int, ...], itemsize: int) -> dict[str, Any]:
    """The member "chunk_grid" of an array, which follows from shape and item size alone."""
    configuration = {"chunk_shape": list(chunk_shape(shape, itemsize))}
    return {"name": "regular", "configuration": configuration}


def checked_array(metadata: Any, dtype: str) -> dict[str, Any]:
    """The same metadata of an array whose content is of this dtype.

    TensorStore believes what it is told: of a chunk that claims 2**40 bytes it allocates
    so many, and the process ends.

    Raises:
        ValueError: they are not those of an array that we store.
        CorruptionError: they claim a shape of which no array can be.
        UnknownFormatError: there is no such dtype.
    """
    if not isinstance(metadata, dict) or not isinstance(dtype, str):
        raise ValueError("there is no metadata of an array")
    shape, codecs = metadata.get("shape"), metadata.get("codecs")
    if not isinstance(shape, list) or not all(map(canonical.is_count, shape)):
        raise ValueError(f"its shape is {shape!r}"[:200])
    itemsize = storage_dtype(dtype).itemsize
    check_shape("a stored array", shape, itemsize)
    if (metadata.get("zarr_format"), metadata.get("node_type")) != (3, "array"):
        raise ValueError("it is no array of zarr v3")
    if metadata.get("data_type") != zarr_dtype(dtype):
        raise ValueError(f"its data type is not that of {dtype}")
    if metadata.get("chunk_grid") != chunk_grid(tuple(shape), itemsize):
        raise ValueError("its chunk grid is not the one that its shape has")
    if not isinstance(codecs, list) or not all(map(_is_codec, codecs)):
        raise ValueError("its codecs are not those that chunks are stored by")
    return metadata


def _is_codec(codec: object) -> bool:
    return isinstance(codec, Mapping) and codec.get("name") in CODECS


def are_chunks(value: object, count: int) -> bool:
    """Whether it is a list of some chunks out of `count`, by their numbers, ascending."""
    if not isinstance(value, list) or not all(canonical.is_count(n, count - 1) for n in value):
        return False
    return all(a < b for a, b in itertools.pairwise(value))
