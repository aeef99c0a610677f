"""Flax msgpack files, as `flax.serialization.to_bytes` writes them.

The tree of a file is its state dict: nested dicts with string keys, arrays and
plain Python values. Files of Flax are read, and Flax reads ours; the bytes are
those of `msgpack_serialize(to_state_dict(tree))`, with dict entries in sorted
order (`to_bytes` keeps insertion order), but a file is written leaf by leaf and
so never held in memory as a whole.

`flax.serialization.msgpack_serialize` also takes trees that are no state dicts,
with lists or integer keys. Such a file is read with the metadata
`{"encoding": "tree"}`, and with them `write` keeps lists and keys as they are.
There is no room for other metadata.

Encoding (flax/serialization.py): msgpack with the extension types 1, an array
as (shape, dtype name, C-order bytes); 2, a complex number as (real, imaginary);
3, a NumPy scalar, as an array. Arrays of more than 2**30 bytes in a dict are a
dict of flat chunks, because msgpack has a limit of 2**32 - 1 bytes.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgpack
import numpy as np

from vcjax import errors
from vcjax.formats import arrays, files
from vcjax.formats.protocol import Checkpoint
from vcjax.tree import spec

MAX_CHUNK_BYTES = 2**30
"""`flax.serialization.MAX_CHUNK_SIZE`: arrays larger than this are stored in chunks."""

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 500  # msgpack refuses to read 512 levels, msgpack-python to pack 511
_VALUES = (bool, int, float, complex, str, bytes, type(None))
_DAMAGE = (
    *(ValueError, TypeError, OverflowError, MemoryError, RecursionError),
    msgpack.exceptions.UnpackException,
)
# Flax finds a dtype by its name, so not those of strings, dates and records.
_DTYPES = {np.dtype(code).name: np.dtype(code) for code in "?bhilqBHILQefdgFDG"} | arrays.ML_DTYPES
_TREE_METADATA = {"encoding": "tree"}


class Msgpack:
    """The format "msgpack"."""

    name = "msgpack"
    suffixes = (".msgpack",)

    def sniff(self, head: bytes) -> bool:
        """A msgpack map whose first key is a string, and not a safetensors header by chance."""
        if head == b"\x80":
            return True
        start = {0xDE: 3, 0xDF: 5}.get(head[0] if head else 0, 1)
        is_map = head[:1] >= b"\x81" and (head[:1] <= b"\x8f" or start > 1)
        key = head[start : start + 1]
        is_string = b"\xa0" <= key <= b"\xbf" or key in (b"\xd9", b"\xda", b"\xdb")
        return is_map and is_string and head[4:9] != b"\0\0\0\0{"

    def read(self, path: Path) -> Checkpoint:
        """Reads a file.

        Returns:
            The state dict, its arrays read-only. The metadata are `{}`, or
            `{"encoding": "tree"}` for a file that is no state dict.

        Raises:
            FormatError: the file is damaged, or holds what Flax does not write.
            StorageError: the file is missing or cannot be read.
        """
        with files.reading(path, "a Flax msgpack file", *_DAMAGE), path.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                packed = msgpack.unpackb(
                    mapped,
                    ext_hook=_decode,
                    object_pairs_hook=_unique_dict,
                    raw=False,
                    strict_map_key=False,
                )
            tree, is_state_dict = _restored(packed, in_dict=True)
        return Checkpoint(tree, {} if is_state_dict else dict(_TREE_METADATA))

    def write(self, path: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Writes a tree as `flax.serialization.to_state_dict` sees it.

        Args:
            path: the file.
            tree: a PyTree of arrays and plain Python values; lists, tuples,
                namedtuples, `TrainState`, … become dicts.
            metadata: `{}`, or `{"encoding": "tree"}` to keep lists and integer keys.

        Raises:
            FormatError: a leaf that Flax msgpack cannot hold, or other metadata.
            StorageError: the disk refused.
        """
        if metadata and dict(metadata) != _TREE_METADATA:
            raise errors.FormatError(
                f"a msgpack file has no room for metadata ({', '.join(map(str, metadata))})",
                hint="write without metadata, or write a .npz or .safetensors file",
            )
        state = tree if metadata else _state_dict(tree)
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            _Writer(file).write(state, (), in_dict=True)


def _state_dict(tree: Any) -> Any:
    # Flax imports JAX and Orbax, which takes seconds that reading a file does not need.
    from flax import serialization

    try:
        return serialization.to_state_dict(tree)
    except (AssertionError, ValueError, RecursionError) as error:
        raise errors.FormatError(
            f"Flax cannot make a state dict of this tree: {error}",
            hint="give every dict string keys that differ",
        ) from error


class _Writer:
    """Packs a tree into a file, dict entries sorted as JAX sorts them."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.packer = msgpack.Packer(strict_types=True)

    def write(self, node: Any, keys: tuple[Any, ...], in_dict: bool) -> None:
        if len(keys) > _MAX_DEPTH:
            _refuse(keys, f"lies more than {_MAX_DEPTH} levels deep", "make the tree flatter")
        # Exact types: Packer would turn a subclass into what it is derived from.
        if type(node) is dict:
            self._write_dict(node, keys)
        elif isinstance(node, Mapping):  # nnx.State, which Flax does not serialise itself
            self.write(_state_dict(dict(node)), keys, in_dict)
        elif type(node) in (list, tuple):
            self.file.write(self.packer.pack_array_header(len(node)))
            for index, child in enumerate(node):
                self.write(child, (*keys, index), in_dict=False)
        elif arrays.is_array(node):
            self._write_array(node, keys, in_dict)
        elif type(node) is complex:
            pair = msgpack.packb((node.real, node.imag))
            self.file.write(self.packer.pack_ext_type(_COMPLEX, pair))
        elif type(node) in _VALUES:
            try:
                self.file.write(self.packer.pack(node))
            except (OverflowError, ValueError) as error:  # an integer of 65 bits, a lone surrogate
                _refuse(keys, f"cannot be stored: {error}", "store it as a string or an array")
        else:
            kind = type(node).__qualname__
            hint = "convert it to an array; an nnx.Module to its state, by nnx.state"
            _refuse(keys, f"is of type {kind}, which Flax msgpack cannot hold", hint)

    def _write_dict(self, node: dict[Any, Any], keys: tuple[Any, ...]) -> None:
        if _CHUNKED in node:
            hint = "rename that key"
            _refuse((*keys, _CHUNKED), "has a key that Flax keeps for itself", hint)
        self.file.write(self.packer.pack_map_header(len(node)))
        for key in sorted(node, key=lambda key: (type(key).__name__, key)):
            if type(key) not in (str, int):
                _refuse((*keys, key), "has a key that is neither str nor int", "rename that key")
            self.write(key, (*keys, key), in_dict=False)
            self.write(node[key], (*keys, key), in_dict=True)

    def _write_array(self, leaf: Any, keys: tuple[Any, ...], in_dict: bool) -> None:
        array = arrays.host_array(leaf, _path(keys))
        if _DTYPES.get(array.dtype.name) != array.dtype:
            hint = "convert it with `.astype`, or write a .npz file"
            _refuse(keys, f"has dtype {array.dtype}, which Flax cannot read back", hint)
        if array.nbytes <= MAX_CHUNK_BYTES or not in_dict:
            self._write_block(_SCALAR if isinstance(leaf, np.generic) else _ARRAY, array, keys)
            return
        step = max(1, MAX_CHUNK_BYTES // array.itemsize)
        flat = array.reshape(-1)
        starts = range(0, flat.size, step)
        shape = {str(axis): length for axis, length in enumerate(array.shape)}
        self.file.write(self.packer.pack_map_header(3))
        self.file.write(self.packer.pack(_CHUNKED) + self.packer.pack(True))
        self.file.write(self.packer.pack("shape") + self.packer.pack(shape))
        self.file.write(self.packer.pack("chunks") + self.packer.pack_map_header(len(starts)))
        for index, start in enumerate(starts):
            self.file.write(self.packer.pack(str(index)))
            self._write_block(_ARRAY, flat[start : start + step], keys)

    def _write_block(self, code: int, array: np.ndarray, keys: tuple[Any, ...]) -> None:
        try:
            data = msgpack.packb((array.shape, array.dtype.name, array.tobytes()))
            self.file.write(self.packer.pack_ext_type(code, data))
        except ValueError as error:
            hint = "put it into a dict instead of a list, where it can be cut into chunks"
            _refuse(keys, f"of {array.nbytes} bytes is too large for msgpack: {error}", hint)


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(spec.escape(key) for key in keys)


def _refuse(keys: tuple[Any, ...], problem: str, hint: str) -> NoReturn:
    path = _path(keys)
    raise errors.FormatError(f"leaf {path!r} {problem}", path=path, hint=hint)


def _array(data: bytes) -> np.ndarray:
    shape, name, content = msgpack.unpackb(data, raw=True)
    dtype = _DTYPES.get(name.decode()) if isinstance(name, bytes) else None
    if dtype is None:
        raise ValueError(f"an array has the dtype {name!r}")
    return np.frombuffer(content, dtype).reshape(shape)


def _decode(code: int, data: bytes) -> Any:
    if code == _ARRAY:
        return _array(data)
    if code == _SCALAR:
        array = _array(data)
        if array.shape:
            raise ValueError(f"a scalar has the shape {array.shape}")
        return array[()]
    if code == _COMPLEX:
        real, imaginary = msgpack.unpackb(data)
        return complex(real, imaginary)
    raise ValueError(f"unknown msgpack extension type {code}")


def _unique_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a dict has the same key twice")
    for key in result:
        if type(key) not in (str, int):
            raise ValueError(f"a dict has the key {key!r}")
    return result


def _restored(node: Any, in_dict: bool) -> tuple[Any, bool]:
    """The tree with chunked arrays put together, and whether it is a state dict.

    Flax looks for chunked arrays at the root and in dicts, but not in lists.
    """
    if isinstance(node, dict):
        if in_dict and _CHUNKED in node:
            return _unchunked(node), True
        restored = {key: _restored(child, in_dict=True) for key, child in node.items()}
        is_state_dict = all(below and type(key) is str for key, (_, below) in restored.items())
        return {key: child for key, (child, _) in restored.items()}, is_state_dict
    if isinstance(node, list):
        return [_restored(child, in_dict=False)[0] for child in node], False
    if not isinstance(node, (*_VALUES, np.ndarray, np.generic)):
        raise ValueError(f"it holds a {type(node).__qualname__}")
    return node, True


def _unchunked(node: dict[str, Any]) -> np.ndarray:
    try:
        shape = tuple(node["shape"][str(axis)] for axis in range(len(node["shape"])))
        chunks = [node["chunks"][str(index)] for index in range(len(node["chunks"]))]
    except (KeyError, AttributeError) as error:
        raise ValueError(f"a chunked array lacks {error}") from error
    if not all(isinstance(chunk, np.ndarray) for chunk in chunks):
        raise ValueError("a chunked array holds something that is not an array")
    if len({chunk.dtype for chunk in chunks}) != 1:
        raise ValueError("a chunked array has chunks of different dtypes")
    return np.concatenate(chunks).reshape(shape)


FORMAT = Msgpack()
