"""Digests of arrays in host memory: the `blake3` package over zero-copy views."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import blake3
import numpy as np

from vcjax.hashing import grid
from vcjax.hashing.digests import LeafDigest, leaf_digest


@cache
def hashing_pool() -> ThreadPoolExecutor:
    """The thread pool that digests chunks: one thread per usable core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(max_workers=cores or 1, thread_name_prefix="vcjax-hash")


def _bytes_view(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _digest_range(view: memoryview, start: int, stop: int) -> bytes:
    return blake3.blake3(view[start:stop]).digest()


def digest_array(dtype: str, array: np.ndarray) -> LeafDigest:
    """The digest of one leaf, on the calling thread.

    Args:
        dtype: the leaf's dtype name, which its identity includes.
        array: canonical host array (C order, little-endian; see `vcjax.tree.canonical`).
    """
    view = _bytes_view(array)
    shape, itemsize = array.shape, array.dtype.itemsize
    chunks = tuple(_digest_range(view, *span) for span in grid.chunk_ranges(shape, itemsize))
    return LeafDigest(leaf_digest(dtype, shape, grid.chunk_shape(shape, itemsize), chunks), chunks)


def digest_arrays(leaves: Iterable[tuple[str, np.ndarray]]) -> Iterator[LeafDigest]:
    """The digests of many leaves, in order, computed by all cores ahead of the consumer.

    Args:
        leaves: (dtype name, canonical host array) per leaf.
    """
    pool = hashing_pool()
    pending = []
    for dtype, array in leaves:
        view = _bytes_view(array)
        spans = grid.chunk_ranges(array.shape, array.dtype.itemsize)
        futures = [pool.submit(_digest_range, view, *span) for span in spans]
        pending.append((dtype, array.shape, array.dtype.itemsize, futures))
    for dtype, shape, itemsize, futures in pending:
        digests = tuple(future.result() for future in futures)
        yield LeafDigest(
            leaf_digest(dtype, shape, grid.chunk_shape(shape, itemsize), digests), digests
        )
