"""Digests of arrays in host memory: the `blake3` package over zero-copy views."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain, islice

import blake3
import numpy as np

from vcjax.hashing import grid
from vcjax.hashing.digests import LeafDigest, digest_bytes, leaf_digest
from vcjax.tree import itemsize

Span = tuple[memoryview, int, int]
"""Bytes, start and stop."""

POOLED_BYTES = 256 * 1024
"""Smaller leaves are digested on the calling thread: handing them over costs more (30 µs)."""

TASK_BYTES = 8 * 1024 * 1024
"""Chunks are handed to the pool by so many bytes, which is 1.05 to 1.2 times as fast as one by
one (498 MB, in turns); the first of each thread is a single chunk, so that few are shared too.
"""


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def hashing_pool() -> ThreadPoolExecutor:
    """The thread pool that digests chunks: one thread per usable core."""
    return ThreadPoolExecutor(max_workers=usable_cores(), thread_name_prefix="vcjax-hash")


def _start(spans: list[Span]) -> Future[list[bytes]]:
    try:
        return hashing_pool().submit(_digest_all, spans)
    except RuntimeError:
        # The interpreter is about to exit and its pools take no more work, while
        # a background commit is still being finished: digest on this thread.
        done: Future[list[bytes]] = Future()
        done.set_result(_digest_all(spans))
        return done


def bytes_view(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array; no copy."""
    return array.reshape(-1).view(np.uint8).data


def _digest_range(view: memoryview, start: int, stop: int) -> bytes:
    return blake3.blake3(view[start:stop]).digest()


def _digest_all(spans: list[Span]) -> list[bytes]:
    return [_digest_range(*span) for span in spans]


def _digest_ahead(spans: Iterable[Span]) -> Iterator[bytes]:
    """The digests of spans, in order, computed by all cores ahead of the consumer."""
    cores = usable_cores()
    futures: list[Future[list[bytes]]] = []
    task: list[Span] = []
    size = 0
    for span in spans:  # the first tasks run while later spans are made
        task.append(span)
        size += span[2] - span[1]
        if size >= TASK_BYTES or len(futures) < cores:
            futures.append(_start(task))
            task, size = [], 0
    if task:
        futures.append(_start(task))
    return chain.from_iterable(future.result() for future in futures)


def digest_spans(spans: list[Span]) -> list[bytes]:
    """The digests of (bytes, start, stop), by all cores where that is worth while."""
    if sum(stop - start for _, start, stop in spans) < POOLED_BYTES:
        return _digest_all(spans)
    return list(_digest_ahead(spans))


def chunk_digests(region: np.ndarray, shape: tuple[int, ...]) -> list[bytes]:
    """The digests of the chunks that a region of a leaf is made of (`regions.chunk_boxes`).

    Args:
        region: canonical host array.
        shape: of the leaf.
    """
    size = region.itemsize * math.prod(grid.chunk_shape(shape, region.itemsize))
    view, end = bytes_view(region), region.nbytes
    return digest_spans([(view, at, min(at + size, end)) for at in range(0, end, size)])


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
    held: list[tuple[str, np.ndarray]] = []
    pooled: dict[int, int] = {}  # position of a leaf: its number of chunks

    def spans() -> Iterator[Span]:
        for dtype, array in leaves:
            if array.nbytes >= POOLED_BYTES:
                view = bytes_view(array)
                ranges = list(grid.chunk_ranges(array.shape, array.itemsize))
                pooled[len(held)] = len(ranges)
                yield from ((view, *part) for part in ranges)
            held.append((dtype, array))

    digests = _digest_ahead(spans())  # has drawn all spans when it returns: `held` is complete
    for i, (dtype, array) in enumerate(held):
        if i in pooled:
            yield joined_digest(dtype, array.shape, tuple(islice(digests, pooled[i])))
        else:
            yield digest_array(dtype, array)
