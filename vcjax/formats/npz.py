"""NumPy .npz files, without pickle and with the true dtypes of ml_dtypes.

The tree of a file is a flat dict {name: array}. NumPy itself writes bfloat16
and its like as void ("|V2") and so forgets what they were; a file that vcjax
writes has one more member for them, `__vcjax__.json`::

    {"dtypes": {name: "bfloat16", …}, "metadata": {…}, "version": 1}

It is the first member, there only when a dtype or metadata need it, and never
part of the tree. `numpy.load` opens such a file as it always did. Any other
.npz file is read as it is. Arrays in foreign byte order become native, and
files are written uncompressed, in C order, with fixed time stamps, sorted by
name, so that equal trees give equal bytes.

Specification: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
import json
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from vcjax import errors
from vcjax.formats import arrays, files
from vcjax.formats.protocol import Checkpoint
from vcjax.tree import spec

MEMBER = "__vcjax__.json"
VERSION = 1
_READ_BYTES = 1 << 24  # per call; larger ones were not faster, and zipfile copies each
_MAX_DEFLATE_RATIO = 1032  # https://zlib.net/zlib_tech.html
_DAMAGE = (
    *(ValueError, EOFError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError),
    *(RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    # zipfile: an unknown compression method; a seek that a damaged offset sends too far.
    *(NotImplementedError, AttributeError, AssertionError),
    # NumPy: a header that is no Python; zipfile: extra fields that are cut short.
    *(tokenize.TokenError, struct.error),
)


class Npz:
    """The format "npz"."""

    name = "npz"
    suffixes = (".npz",)

    def sniff(self, head: bytes) -> bool:
        """A zip archive whose first member is an array or vcjax's own, or an empty one."""
        if head[:4] == b"PK\x05\x06":
            return True
        end = 30 + int.from_bytes(head[26:28], "little")
        name = head[30:end]
        visible = end <= len(head)
        return head[:4] == b"PK\x03\x04" and (
            not visible or name.endswith(b".npy") or name == MEMBER.encode()
        )

    def read(self, path: Path) -> Checkpoint:
        """Reads all arrays of a file.

        Returns:
            {name: array}, in the order of the file, and the metadata that were
            given to `write` ({} for files of other programs).

        Raises:
            FormatError: the file is damaged, needs pickle, or holds something
                that is not an array.
            StorageError: the file is missing or cannot be read.
        """
        with (
            files.reading(path, "an .npz file", *_DAMAGE),
            path.open("rb") as file,
            zipfile.ZipFile(file) as archive,
        ):
            size = path.stat().st_size
            members = archive.infolist()
            _check_sizes(members, size)
            dtypes: dict[str, np.dtype] = {}
            metadata: dict[str, Any] = {}
            tree: dict[str, np.ndarray] = {}
            for info in members:
                if info.filename == MEMBER:
                    dtypes, metadata = _parse_member(_content(archive, info).tobytes())
            for info in members:
                name = info.filename.removesuffix(".npy")
                if info.filename == MEMBER:
                    continue
                if name == info.filename or name in tree:
                    what = "there twice" if name in tree else "not an array"
                    raise ValueError(f"its member {info.filename!r} is {what}")
                tree[name] = _parse_array(name, _content(archive, info))
            for name, dtype in dtypes.items():
                tree[name] = _retyped(name, tree[name], dtype)
        return Checkpoint(tree, metadata)

    def write(self, path: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Writes the arrays of a tree; nested keys are escaped and joined with "/".

        Args:
            path: the file.
            tree: a PyTree of arrays.
            metadata: anything that JSON can hold.

        Raises:
            FormatError: a leaf is not an array, two leaves get the same name, a
                name cannot be that of a zip member, or metadata do not fit JSON.
            StorageError: the disk refused.
        """
        named = arrays.named_arrays(tree, "/", self.name, spec.escape)
        dtypes = {
            name: array.dtype.name for name, array in named.items() if array.dtype in _ML_DTYPES
        }
        member = _member(dtypes, metadata) if dtypes or metadata else None
        for name in named:
            _check_name(name)
        with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            if member is not None:
                archive.writestr(_info(MEMBER), member)
            for name, array in named.items():
                stored = array.view(f"V{array.itemsize}") if name in dtypes else array
                # Without a version NumPy warns when field names are not Latin or a header is long.
                version = (3, 0) if stored.dtype.names else None
                with archive.open(_info(name + ".npy"), "w", force_zip64=True) as file:
                    # ZipFile gives a writable binary file that is typed as IO[bytes].
                    np.lib.format.write_array(
                        cast(io.BytesIO, file), stored, version, allow_pickle=False
                    )


_ML_DTYPES = frozenset(arrays.ML_DTYPES.values())


def _info(name: str) -> zipfile.ZipInfo:
    """A member with the time stamp 1980-01-01, so that equal content gives equal files."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o600 << 16
    return info


def _check_name(name: str) -> None:
    if "\0" in name or len(name.encode()) > 65_000 or _info(name).filename != name:
        raise errors.FormatError(
            f"the leaf name {name[:80]!r} cannot be the name of a member of an .npz file",
            path=name,
            hint="rename the leaf: no NUL characters, at most 65000 bytes",
        )


def _member(dtypes: dict[str, str], metadata: Mapping[str, Any]) -> bytes:
    content = {"version": VERSION, "dtypes": dtypes, "metadata": dict(metadata)}
    try:
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        exact = json.loads(text)["metadata"] == dict(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.FormatError(
            f"the metadata do not fit JSON: {error}",
            hint="use only dicts with string keys, lists, strings, finite numbers, bools and None",
        ) from error
    if not exact:
        raise errors.FormatError(
            "JSON would change the metadata",
            hint="use lists instead of tuples, and strings as keys",
        )
    return text.encode()


def _parse_member(text: bytes) -> tuple[dict[str, np.dtype], dict[str, Any]]:
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise errors.FormatError(
            f"its member {MEMBER!r} is not of version {VERSION}", hint="update vcjax"
        )
    names, metadata = content.get("dtypes", {}), content.get("metadata", {})
    if not isinstance(names, dict) or not isinstance(metadata, dict):
        raise ValueError(f"its member {MEMBER!r} is malformed")
    unknown = sorted(set(names.values()) - set(arrays.ML_DTYPES))
    if unknown:
        raise errors.FormatError(
            f"it holds arrays of an unknown dtype {unknown[0]!r}", hint="update ml_dtypes"
        )
    return {name: arrays.ML_DTYPES[dtype] for name, dtype in names.items()}, metadata


def _check_sizes(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Refuses claims of more bytes than the file can hold, before memory is spent on them.

    Of all members together, too: they may lie over each other in the file (D. Fifield, "A
    better zip bomb", 2019).
    """
    total = 0
    for info in members:
        total += info.file_size
        if total > size * _MAX_DEFLATE_RATIO:
            raise ValueError(f"its members up to {info.filename!r} claim {total} bytes")


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member, checked against its CRC."""
    content = np.empty(info.file_size, np.uint8)
    with archive.open(info) as file:
        start = 0
        while start < info.file_size:
            block = file.read(min(_READ_BYTES, info.file_size - start))
            if not block:
                raise ValueError(f"its member {info.filename!r} is cut short")
            content[start : start + len(block)] = np.frombuffer(block, np.uint8)
            start += len(block)
        if file.read(1):  # also makes zipfile check the CRC
            raise ValueError(f"its member {info.filename!r} is longer than it says")
    return content


def _parse_array(name: str, content: np.ndarray) -> np.ndarray:
    """The array of an .npy file, as a view of its bytes."""
    head = io.BytesIO(content[:65_600].tobytes())  # a version 1 header takes at most 65 546 bytes
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
        start = head.tell()
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
        if start + math.prod(shape) * dtype.itemsize != content.nbytes:
            raise ValueError(f"{name!r} has {content.nbytes - start} bytes of data")
        array = np.ndarray(shape, dtype, content.data, start, order="F" if fortran else "C")
    else:  # long or non-Latin field names of structured dtypes
        array = np.lib.format.read_array(io.BytesIO(content.tobytes()), allow_pickle=False)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _retyped(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype != np.dtype(f"V{dtype.itemsize}"):
        raise ValueError(f"{name!r} is stored as {array.dtype}, but should be {dtype}")
    return array.view(dtype)


FORMAT = Npz()
