"""Digests of arrays in host memory: the `blake3` package over zero-copy views."""

import atexit
import os
from collections.abc import Iterable, Iterator
from functools import cache
from multiprocessing.pool import AsyncResult, ThreadPool

import blake3
import numpy as np

from vcjax.hashing import grid
from vcjax.hashing.digests import LeafDigest, leaf_digest

POOLED_BYTES = 256 * 1024
"""Smaller leaves are digested on the calling thread: handing them over costs more (30 µs)."""


@cache
def hashing_pool() -> ThreadPool:
    """The thread pool that digests chunks: one thread per usable core.

    Not one of `concurrent.futures`: those take no more work once the interpreter
    is about to exit, when a background commit may still have some to give.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPool(cores or 1)
    atexit.register(pool.terminate)
    return pool


def _bytes_view(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


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
    pending: list[tuple[str, np.ndarray, list[AsyncResult[bytes]]]] = []
    for dtype, array in leaves:
        futures: list[AsyncResult[bytes]] = []
        if array.nbytes >= POOLED_BYTES:
            view = _bytes_view(array)
            spans = grid.chunk_ranges(array.shape, array.dtype.itemsize)
            futures = [pool.apply_async(_digest_range, (view, *span)) for span in spans]
        pending.append((dtype, array, futures))
    for dtype, array, futures in pending:
        if not futures:
            yield digest_array(dtype, array)
            continue
        shape, digests = array.shape, tuple(future.get() for future in futures)
        chunks = grid.chunk_shape(shape, array.dtype.itemsize)
        yield LeafDigest(leaf_digest(dtype, shape, chunks, digests), digests)
