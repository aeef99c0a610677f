"""safetensors files, through the safetensors library.

The tree of a file is a flat dict {tensor name: array}; its metadata are the
strings of the header's `__metadata__`. Arrays are read-only views of the mapped
file, so reading costs no memory until their pages are touched, and the file
must not be overwritten *in place* meanwhile (vcjax and the safetensors library
write new files and rename them).

The format stores two float4 values per byte, the first in the low four bits;
in memory they are one per byte (`ml_dtypes.float4_e2m1fn`).

Specification: https://github.com/huggingface/safetensors#format
"""

import json
import math
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from vcjax import errors
from vcjax.formats import arrays, files
from vcjax.formats.protocol import Checkpoint

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F4": np.dtype(ml_dtypes.float4_e2m1fn),
}
_FLOAT4 = _DTYPES["F4"]
_WRITABLE = frozenset(_DTYPES.values())
_DAMAGE = (safetensors.SafetensorError, ValueError, OverflowError, TypeError, MemoryError)
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


class Safetensors:
    """The format "safetensors"."""

    name = "safetensors"
    suffixes = (".safetensors",)

    def sniff(self, head: bytes) -> bool:
        """A little-endian header length of at most 100 MB, then the header's opening brace."""
        length = int.from_bytes(head[:8], "little")
        return head[8:9] == b"{" and 2 <= length <= _MAX_HEADER_BYTES

    def read(self, path: Path) -> Checkpoint:
        """Maps a file.

        Returns:
            {tensor name: read-only array}, in the order of the file, and the
            `__metadata__` of its header.

        Raises:
            FormatError: the file is damaged, or holds float6 data, whose packing
                the format leaves open.
            StorageError: the file is missing or cannot be read.
        """
        kind = "a safetensors file"
        with (
            files.reading(path, kind, *_DAMAGE),
            path.open("rb") as file,
        ):
            with safetensors.safe_open(path, framework="np") as opened:
                metadata = opened.metadata() or {}
                names = opened.offset_keys()
                slices = [opened.get_slice(name) for name in names]
                specs = [(part.get_dtype(), tuple(part.get_shape())) for part in slices]
            # The library opened the path by itself: make sure that both mean the same file.
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise errors.FormatError(
                    f"{str(path)!r} was replaced while it was read", hint="read it again"
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # The library has checked that the tensors follow each other without a gap.
            offset = 8 + int.from_bytes(mapped[:8], "little")
            tree = {}
            for name, (code, shape) in zip(names, specs, strict=True):
                tree[name], offset = _view(mapped, offset, name, code, shape)
            if offset != len(mapped):
                raise ValueError(f"tensors end at byte {offset} of {len(mapped)}")
        return Checkpoint(tree, dict(metadata))

    def write(self, path: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Writes the arrays of a tree; nested keys are joined with ".".

        Args:
            path: the file.
            tree: a PyTree of arrays.
            metadata: strings by name.

        Raises:
            FormatError: a leaf is not an array, has a dtype that safetensors does
                not know, two leaves get the same name, or metadata are not strings.
            StorageError: the disk refused.
        """
        named = arrays.named_arrays(tree, ".", self.name)
        _check_metadata(metadata)
        packed = {name: _packed(name, array) for name, array in named.items()}
        specs = {
            name: safetensors.TensorSpec(
                dtype=_FLOAT4.name + "_x2" if named[name].dtype == _FLOAT4 else array.dtype.name,
                shape=array.shape,
                data_ptr=array.ctypes.data,
                data_len=array.nbytes,
            )
            for name, array in packed.items()
        }
        with files.replacing(path) as temporary:
            try:
                safetensors.serialize_file(specs, temporary, metadata=dict(metadata) or None)
            except safetensors.SafetensorError as error:
                code = re.search(r"os error (\d+)", str(error))
                if code is None:
                    raise errors.FormatError(f"cannot write {str(path)!r}: {error}") from error
                number = int(code[1])
                raise files.storage_error("write", path, number, os.strerror(number)) from error
            if len(metadata) > 1:
                with temporary.open("r+b") as file:
                    _sort_metadata(file)


def _view(
    mapped: mmap.mmap, offset: int, name: str, code: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    """The array at a byte offset, and the offset behind it."""
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise errors.FormatError(
            f"tensor {name!r} has the dtype {code}, which vcjax cannot read",
            path=name,
            hint="convert that tensor to another dtype; vcjax reads " + ", ".join(_DTYPES),
        )
    count = math.prod(shape)
    if dtype == _FLOAT4:
        raw = np.frombuffer(mapped, np.uint8, (count + 1) // 2, offset)
        pairs = np.stack([raw & 0xF, raw >> 4], axis=-1)
        return pairs.reshape(-1)[:count].reshape(shape).view(dtype), offset + raw.nbytes
    array = np.frombuffer(mapped, dtype, count, offset).reshape(shape)
    # Other writers may align the data badly, which not all consumers of NumPy arrays accept.
    return (array if array.flags.aligned else array.copy()), offset + array.nbytes


def dtype_code(name: str, dtype: np.dtype) -> str:
    """What the format calls a dtype of whole bytes.

    Raises:
        FormatError: it has no name for it.
    """
    for code, known in _DTYPES.items():
        if known == dtype != _FLOAT4:
            return code
    raise errors.FormatError(
        f"tensor {name!r} has dtype {dtype.name}, which cannot be written to safetensors in parts",
        path=name,
        hint="choose another dtype",
    )


def _packed(name: str, array: np.ndarray) -> np.ndarray:
    """The array as it is stored: float4 in pairs, everything else as it is."""
    if name == "__metadata__":
        raise errors.FormatError(
            "a safetensors file cannot hold a tensor named '__metadata__'",
            path=name,
            hint="rename the leaf",
        )
    if array.dtype not in _WRITABLE:
        raise errors.FormatError(
            f"leaf {name!r} has dtype {array.dtype.name}, which safetensors does not know",
            path=name,
            hint="convert it with `.astype`, or write a .msgpack or .npz file",
        )
    if array.dtype != _FLOAT4:
        return array
    if array.ndim == 0 or array.shape[-1] % 2:
        raise errors.FormatError(
            f"leaf {name!r} of shape {array.shape} cannot be stored as float4 pairs",
            path=name,
            hint="pad its last axis to an even length, or write a .msgpack or .npz file",
        )
    bits = array.view(np.uint8)
    return (bits[..., 0::2] & 0xF) | (bits[..., 1::2] << 4)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise errors.FormatError(
                f"safetensors metadata are strings, but {key!r} is {value!r}",
                hint="convert it with str or json.dumps, or write a .npz file",
            )
        try:
            (key + value).encode()
        except UnicodeEncodeError as error:
            raise errors.FormatError(
                f"the metadata {key!r} are not valid Unicode", hint="remove lone surrogates"
            ) from error


def _sort_metadata(file: BinaryIO) -> None:
    """Sorts `__metadata__` in the header of a file: the library writes it in random order."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > length:
        raise errors.FormatError(
            "the safetensors header cannot be put in order",
            hint="remove control characters from tensor names and metadata",
        )
    file.seek(8)
    file.write(text.ljust(length))


FORMAT = Safetensors()
