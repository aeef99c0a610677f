"""One stored array: its `zarr.json`, and opening it for reading and writing."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from vcjax.errors import StorageError
from vcjax.hashing import LeafDigest, chunk_digests, joined_digest
from vcjax.hashing.regions import chunk_boxes
from vcjax.objects.array_metadata import chunk_grid, zarr_dtype
from vcjax.objects.header import ArrayHeader
from vcjax.objects.layout import array_errors
from vcjax.storage import Store
from vcjax.tree import storage_dtype

ALIGNMENT = 64
"""What buffers are aligned to, in bytes."""


def new_header(
    dtype: str, shape: tuple[int, ...], digest: LeafDigest, compress: bool
) -> ArrayHeader:
    """The header of a dense array that is about to be written.

    The byte shuffle of Blosc groups bytes of equal significance; a block size of
    1 MiB is given because the default one loses 8 % of the compression ratio.
    """
    itemsize = storage_dtype(dtype).itemsize
    codecs: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}}
        if itemsize > 1
        else {"name": "bytes"}
    ]
    if compress:
        blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 1 << 20}
        codecs.append({"name": "blosc", "configuration": {**blosc, "typesize": itemsize}})
    codecs.append({"name": "crc32c"})
    stored = zarr_dtype(dtype)
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": stored,
        "chunk_grid": chunk_grid(shape, itemsize),
        "chunk_key_encoding": {"name": "default"},
        "fill_value": _fill_value(stored),
        "codecs": codecs,
    }
    chunks = tuple(chunk.hex() for chunk in digest.chunks)
    return ArrayHeader(metadata, digest.leaf.hex(), chunks, dtype, time.time())


def _fill_value(dtype: str) -> Any:
    if dtype == "bool":
        return False
    if dtype.startswith("complex"):
        return [0.0, 0.0]
    if dtype == "float8_e8m0fnu":
        return "0x00"  # this dtype has no zero; its all-zero byte is 2^-127
    return 0.0 if "float" in dtype else 0


def raw_key(header: ArrayHeader, key: str, place: Sequence[int]) -> str | None:
    """Where the bytes of a chunk are as they are in memory, followed by four of a checksum.

    Args:
        header: of a dense array.
        key: where the array is.
        place: of the chunk in the grid.

    Returns:
        None if they are compressed, or this machine has them in another order.
    """
    codecs = header.metadata.get("codecs", [])
    names = [codec.get("name") for codec in codecs]
    if names != ["bytes", "crc32c"] or sys.byteorder != "little":
        return None
    order = codecs[0].get("configuration", {}).get("endian", "little")
    if order != "little" or header.metadata.get("chunk_key_encoding") != {"name": "default"}:
        return None
    return "/".join([key, "c", *map(str, place)])


def open_array(store: Store, key: str, metadata: dict[str, Any]) -> Any:
    """Future of the TensorStore of an array whose metadata is known: no request is made.

    Chunks equal to the fill value are stored too and missing ones are an error;
    TensorStore would otherwise read a lost chunk as zeros.
    """
    spec = {
        "driver": "zarr3",
        "kvstore": store.array_spec(key),
        "metadata": metadata,
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, open=True, assume_metadata=True, context=store.context)


def digest_stored(store: Store, key: str, metadata: dict[str, Any], dtype: str) -> LeafDigest:
    """The digest of what a stored array holds, whatever anything says of it.

    Raises:
        CorruptionError: it cannot be read.
    """
    shape, chunks = tuple(metadata["shape"]), []
    with array_errors(store, key):
        stored = open_array(store, key, metadata).result()
        for box in chunk_boxes(shape, storage_dtype(dtype).itemsize):
            buffer = aligned_buffer(tuple(stop - start for start, stop in box), dtype)
            part = stored[tuple(slice(*span) for span in box)] if box else stored
            ts.array(stored_view(buffer, dtype)).write(part).result()
            chunks += chunk_digests(buffer, shape)
    return joined_digest(dtype, shape, chunks)


def aligned_buffer(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An uninitialised array of a leaf's storage dtype that JAX on CPU can use in place.

    NumPy aligns to 16 bytes, JAX asks for 64 and would copy, which doubled the
    peak memory of a restore.

    Raises:
        StorageError: there is not so much memory.
    """
    kind = storage_dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    try:
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError) as error:
        raise StorageError(
            f"there is no memory for {dtype}{list(shape)}, {nbytes:,} bytes",
            hint="restore some of the leaves with paths=, or on a machine with more memory",
            shell_hint="`vcjax checkout --paths=GLOB` takes some of the leaves; or use a machine "
            "with more memory",
        ) from error
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(kind).reshape(shape)


def stored_view(array: np.ndarray, dtype: str) -> np.ndarray:
    """A canonical array in the dtype that zarr stores it as; no copy."""
    return array if zarr_dtype(dtype) == array.dtype.name else array.view(zarr_dtype(dtype))
