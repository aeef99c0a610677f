"""A checkpoint file as one side of a diff, in bounded memory."""

import mmap
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from vcjax import diffing, formats, hashing, tree

BATCH_BYTES = 64 * 1024 * 1024
"""How much of a file is digested at once."""


class FileContent(diffing.TreeContent):
    """The leaves of a file; the pages of one that is mapped are given back once they were read.

    Without that they would count as this process's memory until the end. They are
    given back when the same thread reads on: whoever still looks at them then only
    has them read again.
    """

    def __init__(self, leaves: Mapping[str, Any]):
        super().__init__(leaves)
        self._thread = threading.local()

    def read(self, path: str, first: int, last: int) -> np.ndarray:
        """See `vcjax.diffing.Content`."""
        found = super().read(path, first, last)
        release(self._thread.__dict__.get("last", found[:0]))
        self._thread.last = found
        return found


def open_file(path: str | os.PathLike[str]) -> tuple[Any, FileContent]:
    """A file as a side of `vcjax.diffing.examine`: its tree with digests, and its contents."""
    root = tree.flatten(formats.read(path).tree)
    leaves = tree.leaf_dict(root)
    arrays = {name: leaf for name, leaf in leaves.items() if not leaf.spec.is_value}
    sizes = {name: leaf.data.nbytes for name, leaf in arrays.items()}
    digests: dict[str, hashing.LeafDigest] = {}
    for batch in diffing.batches(sizes, BATCH_BYTES):
        digests |= hashing.digest_leaves({name: arrays[name] for name in batch}, backend="host")
        for name in batch:
            release(arrays[name].data)
    return diffing.digested(root, digests), FileContent(leaves)


def release(array: np.ndarray) -> None:
    """Gives the pages of a mapped file that an array is a view of back to the page cache."""
    mapping = _mapping(array)
    if mapping is None or not array.nbytes:
        return
    begin = np.frombuffer(mapping, np.uint8).ctypes.data
    start = -(-(array.ctypes.data - begin) // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (array.ctypes.data - begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _mapping(array: Any) -> mmap.mmap | None:
    """The mapped file behind an array, if there is one and nobody may write to it."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return None  # private changes would be lost
        array = array.base
    found = array.obj if isinstance(array, memoryview) else array
    return found if isinstance(found, mmap.mmap) else None
