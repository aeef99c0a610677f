"""Reading parts of leaves: only the chunks that those lie in, each checked against its digest."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tensorstore as ts

from vcjax import updates
from vcjax.errors import CorruptionError
from vcjax.hashing import (
    chunk_count,
    chunk_ranges,
    chunk_runs,
    chunk_shape,
    chunk_slices,
    digest_array,
    digest_bytes,
)
from vcjax.hashing.regions import REGION_BYTES, Box, chunk_box, overlap
from vcjax.history import LeafEntry
from vcjax.objects import read as reading
from vcjax.objects import zarr as arrays
from vcjax.objects.header import ArrayHeader, read_headers
from vcjax.objects.layout import HINT, array_errors, leaf_key, place_of
from vcjax.storage import Store
from vcjax.tree import itemsize, storage_dtype

AHEAD = 8
"""How many leaves are read at the same time."""

CHECKSUM_BYTES = 4
"""What the codec crc32c puts behind a chunk."""


class PartialReader:
    """Some leaves that have an object of their own, opened so that parts of them can be read.

    Args:
        store: where they are.
        entries: {leaf path: entry} of leaves for which `LeafEntry.is_object` holds.
        verify: whether every chunk is checked against its digest.

    Raises:
        CorruptionError: an object is damaged or gone; names its path.
    """

    def __init__(self, store: Store, entries: Mapping[str, LeafEntry], verify: bool = True):
        self._store = store
        self._verify = verify
        self._entries = entries
        keys = [leaf_key(entry.digest) for entry in entries.values()]
        headers = read_headers(store, keys)
        self._chains: dict[str, list[ArrayHeader]] = {
            path: reading.chain_of(store, path, entry, header)
            for (path, entry), header in zip(entries.items(), headers, strict=True)
        }
        self._opened = lru_cache(maxsize=None)(self._open)

    def __contains__(self, path: object) -> bool:
        return path in self._entries

    def read(self, path: str, first: int, last: int) -> np.ndarray:
        """Chunks `first` … `last` of a leaf as a flat array; may be called from several threads.

        They must lie in a row along the axis that is cut (`vcjax.hashing.chunk_runs`).
        The array may be read-only.

        Raises:
            CorruptionError: a chunk is damaged or gone; names the leaf path and the object.
        """
        entry = self._entries[path]
        if first == last and (found := self._mapped(path, first)) is not None:
            self._check(path, entry, found, first, last)
            return found
        shape, width = entry.spec.shape, itemsize(entry.spec.dtype)
        region = chunk_slices(shape, width, first, last)
        lengths = tuple(part.stop - part.start for part in region)
        buffer = arrays.aligned_buffer(lengths, entry.spec.dtype)
        chain = self._chains[path]
        with array_errors(self._store, leaf_key(entry.digest), path):
            target = ts.array(arrays.stored_view(buffer, entry.spec.dtype))
            target = target.translate_to[tuple(part.start for part in region)] if shape else target
            opened = self._opened(path)
            futures = []
            if len(chain) == 1:
                futures.append(target.write(opened[0][region] if shape else opened[0]))
            else:
                count = chunk_count(shape, width)
                holders = updates.sources(count, [head.own for head in chain])
                for at, source in enumerate(opened):
                    held = [i for i in range(first, last + 1) if holders[i] == at]
                    for run in chunk_runs(shape, width, held):
                        part = chunk_slices(shape, width, *run)
                        futures.append(target[part].write(source[part]))
            for future in futures:
                future.result()
        flat = buffer.reshape(-1)
        if self._verify:
            self._check(path, entry, flat if len(entry.chunks) > 1 else buffer, first, last)
        return flat

    def _mapped(self, path: str, chunk: int) -> np.ndarray | None:
        """A chunk that is stored as it is in memory, where it lies; None if it is not.

        TensorStore copies it three times, which takes four times as long as to check its
        digest. As that is what it is checked against, its checksum need not be.
        """
        entry, chain = self._entries[path], self._chains[path]
        if not self._verify or len(chain) > 1:
            return None
        shape, width = entry.spec.shape, itemsize(entry.spec.dtype)
        region, part = chunk_slices(shape, width, chunk, chunk), chunk_shape(shape, width)
        place = [piece.start // size for piece, size in zip(region, part, strict=True)]
        key = arrays.raw_key(chain[0], leaf_key(entry.digest), place)
        found = None if key is None else self._store.mapped(key)
        if found is None or len(found) != width * math.prod(part) + CHECKSUM_BYTES:
            return None
        # What is cut short is the axis that is cut alone: what there is comes first.
        size = math.prod(piece.stop - piece.start for piece in region)
        return np.frombuffer(found, storage_dtype(entry.spec.dtype), size)

    def _open(self, path: str) -> list[Any]:
        store = self._store
        return [
            arrays.open_array(store, head.array_key(leaf_key(head.digest)), head.metadata).result()
            for head in self._chains[path]
        ]

    def _check(self, path: str, entry: LeafEntry, data: np.ndarray, first: int, last: int) -> None:
        shape, width = entry.spec.shape, itemsize(entry.spec.dtype)
        if len(entry.chunks) < 2:
            whole = digest_array(entry.spec.dtype, data.reshape(shape)).leaf.hex() == entry.digest
            broken = [] if whole else [0]
        else:
            view, spans = data.view(np.uint8).data, [(0, data.nbytes)]
            if first != last:
                spans = list(chunk_ranges(shape, width))[first : last + 1]
            begin = spans[0][0]
            broken = [
                index
                for index, (start, stop) in enumerate(spans, first)
                if digest_bytes(view[start - begin : stop - begin]) != entry.chunks[index]
            ]
        if broken:
            raise CorruptionError(
                f"leaf {path!r} is damaged: chunk {broken[0]} of {place_of(entry)} "
                "does not have its digest",
                path=path,
                hint=HINT,
            )


@dataclass(frozen=True)
class Wanted:
    """Parts of a leaf that are to be read.

    Attributes:
        entry: where the leaf is; it has an object of its own.
        boxes: the parts.
    """

    entry: LeafEntry
    boxes: Sequence[Box]


def read_boxes(
    store: Store, wanted: Mapping[str, Wanted], verify: bool
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields leaf path and the content of each box, as arrays that the caller owns.

    Raises:
        CorruptionError: a leaf is damaged or gone; names its path and object.
    """
    reader = PartialReader(store, {path: leaf.entry for path, leaf in wanted.items()}, verify)
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="vcjax-read") as pool:
        flying: deque[tuple[str, Future[list[np.ndarray]]]] = deque()
        for path, leaf in wanted.items():
            if len(flying) == AHEAD:
                done, future = flying.popleft()
                yield done, future.result()
            flying.append((path, pool.submit(_read, reader, path, leaf)))
        for path, future in flying:
            yield path, future.result()


def _read(reader: PartialReader, path: str, wanted: Wanted) -> list[np.ndarray]:
    spec, width = wanted.entry.spec, itemsize(wanted.entry.spec.dtype)
    shapes = [tuple(stop - start for start, stop in box) for box in wanted.boxes]
    buffers = [arrays.aligned_buffer(shape, spec.dtype) for shape in shapes]
    needed = [
        number
        for number in range(chunk_count(spec.shape, width))
        if any(overlap(box, chunk_box(number, spec.shape, width)) for box in wanted.boxes)
    ]
    most = max(1, REGION_BYTES // (width * math.prod(chunk_shape(spec.shape, width))))
    for first, last in _split(chunk_runs(spec.shape, width, needed), most):
        slices = chunk_slices(spec.shape, width, first, last)
        region = tuple((part.start, part.stop) for part in slices)
        content = reader.read(path, first, last).reshape([stop - start for start, stop in region])
        for box, buffer in zip(wanted.boxes, buffers, strict=True):
            if (part := overlap(box, region)) is not None:
                buffer[_within(part, box)] = content[_within(part, region)]
    return buffers


def _split(runs: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """The same runs in pieces of at most so many chunks."""
    for first, last in runs:
        for start in range(first, last + 1, most):
            yield start, min(last, start + most - 1)


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    return tuple(
        slice(start - begin, stop - begin)
        for (start, stop), (begin, _) in zip(part, whole, strict=True)
    )
