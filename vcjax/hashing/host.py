"""Digests of arrays in host memory: the `blake3` package over zero-copy views."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import blake3
import numpy as np

from vcjax.hashing import grid
from vcjax.hashing.digests import LeafDigest, digest_bytes, leaf_digest
from vcjax.tree import itemsize

POOLED_BYTES = 256 * 1024
"""Smaller leaves are digested on the calling thread: handing them over costs more (30 µs)."""


@cache
def hashing_pool() -> ThreadPoolExecutor:
    """The thread pool that digests chunks: one thread per usable core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(max_workers=cores or 1, thread_name_prefix="vcjax-hash")


def _start(view: memoryview, start: int, stop: int) -> Future[bytes]:
    try:
        return hashing_pool().submit(_digest_range, view, start, stop)
    except RuntimeError:
        # The interpreter is about to exit and its pools take no more work, while
        # a background commit is still being finished: digest on this thread.
        done: Future[bytes] = Future()
        done.set_result(_digest_range(view, start, stop))
        return done


def bytes_view(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array; no copy."""
    return array.reshape(-1).view(np.uint8).data


def _digest_range(view: memoryview, start: int, stop: int) -> bytes:
    return blake3.blake3(view[start:stop]).digest()


def digest_spans(spans: Sequence[tuple[memoryview, int, int]]) -> list[bytes]:
    """The digests of (bytes, start, stop), by all cores where that is worth while."""
    if sum(stop - start for _, start, stop in spans) < POOLED_BYTES:
        return [_digest_range(*span) for span in spans]
    return [future.result() for future in [_start(*span) for span in spans]]


def joined_digest(dtype: str, shape: tuple[int, ...], chunks: Sequence[bytes]) -> LeafDigest:
    """The digest of a leaf from those of its chunks, in C order of the grid."""
    part = grid.chunk_shape(shape, itemsize(dtype))
    return LeafDigest(leaf_digest(dtype, shape, part, chunks), tuple(chunks))


def digest_array(dtype: str, array: np.ndarray) -> LeafDigest:
    """The digest of one leaf, on the calling thread.

    Args:
        dtype: the leaf's dtype name, which its identity includes.
        array: canonical host array (C order, little-endian; see `vcjax.tree.canonical`).
    """
    view = bytes_view(array)
    shape, width = array.shape, array.dtype.itemsize
    if 0 < view.nbytes <= grid.CHUNK_BYTES:  # one chunk; saves a third of the time at 7 KB
        chunks = (digest_bytes(view),)
    else:
        chunks = tuple(_digest_range(view, *span) for span in grid.chunk_ranges(shape, width))
    return LeafDigest(leaf_digest(dtype, shape, grid.chunk_shape(shape, width), chunks), chunks)


def digest_arrays(leaves: Iterable[tuple[str, np.ndarray]]) -> Iterator[LeafDigest]:
    """The digests of many leaves, in order, computed by all cores ahead of the consumer.

    Args:
        leaves: (dtype name, canonical host array) per leaf.
    """
    pending: list[tuple[str, np.ndarray, list[Future[bytes]]]] = []
    for dtype, array in leaves:
        futures: list[Future[bytes]] = []
        if array.nbytes >= POOLED_BYTES:
            view = bytes_view(array)
            spans = grid.chunk_ranges(array.shape, array.dtype.itemsize)
            futures = [_start(view, *span) for span in spans]
        pending.append((dtype, array, futures))
    for dtype, array, futures in pending:
        if not futures:
            yield digest_array(dtype, array)
            continue
        shape, digests = array.shape, tuple(future.result() for future in futures)
        chunks = grid.chunk_shape(shape, array.dtype.itemsize)
        yield LeafDigest(leaf_digest(dtype, shape, chunks, digests), digests)
