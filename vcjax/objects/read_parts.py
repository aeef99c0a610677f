"""Reading parts of leaves: only the chunks that those lie in, each checked against its digest."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vcjax.errors import CorruptionError
from vcjax.hashing import (
    chunk_ranges,
    chunk_runs,
    chunk_shape,
    chunk_slices,
    digest_array,
    digest_bytes,
)
from vcjax.hashing.regions import REGION_BYTES, Box, box_of, chunks_in, overlap
from vcjax.history import LeafEntry
from vcjax.objects import zarr as arrays
from vcjax.objects.chain import ChainReader
from vcjax.objects.header import read_headers
from vcjax.objects.layout import HINT, leaf_key, place_of
from vcjax.storage import Store
from vcjax.tree import LeafSpec, itemsize, storage_dtype

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
        self._chains = ChainReader(store)
        self._links = {
            path: self._chains.leaf(path, entry, header)
            for (path, entry), header in zip(entries.items(), headers, strict=True)
        }

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
        buffer = self._chains.read(path, self._links[path], box_of(region, shape))
        flat = buffer.reshape(-1)
        if self._verify:
            self._check(path, entry, flat if len(entry.chunks) > 1 else buffer, first, last)
        return flat

    def read_boxes(self, path: str, boxes: Sequence[Box]) -> list[np.ndarray]:
        """Parts of a leaf, as arrays that the caller owns; only the chunks they lie in are read.

        Raises:
            CorruptionError: a chunk is damaged or gone; names the leaf path and the object.
        """
        spec, width = self._entries[path].spec, itemsize(self._entries[path].spec.dtype)
        shapes = [tuple(stop - start for start, stop in box) for box in boxes]
        buffers = [arrays.aligned_buffer(shape, spec.dtype) for shape in shapes]
        needed = sorted({chunk for box in boxes for chunk in chunks_in(box, spec.shape, width)})
        most = max(1, REGION_BYTES // (width * math.prod(chunk_shape(spec.shape, width))))
        for first, last in chunk_runs(spec.shape, width, needed, most):
            region = box_of(chunk_slices(spec.shape, width, first, last), spec.shape)
            content = self.read(path, first, last).reshape([stop - start for start, stop in region])
            for box, buffer in zip(boxes, buffers, strict=True):
                if (part := overlap(box, region)) is not None:
                    buffer[_within(part, box)] = content[_within(part, region)]
        return buffers

    def _mapped(self, path: str, chunk: int) -> np.ndarray | None:
        """A chunk that is stored as it is in memory, where it lies; None if it is not.

        TensorStore copies it three times, which takes four times as long as to check its
        digest. As that is what it is checked against, its checksum need not be.
        """
        entry, link = self._entries[path], self._links[path]
        if not self._verify or not link.is_dense:
            return None
        shape, width = entry.spec.shape, itemsize(entry.spec.dtype)
        region, part = chunk_slices(shape, width, chunk, chunk), chunk_shape(shape, width)
        place = [piece.start // size for piece, size in zip(region, part, strict=True)]
        key = arrays.raw_key(link.header, link.key, place)
        found = None if key is None else self._store.mapped(key)
        if found is None or len(found) != width * math.prod(part) + CHECKSUM_BYTES:
            return None
        # What is cut short is the axis that is cut alone: what there is comes first.
        size = math.prod(piece.stop - piece.start for piece in region)
        return np.frombuffer(found, storage_dtype(entry.spec.dtype), size)

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
            flying.append((path, pool.submit(reader.read_boxes, path, leaf.boxes)))
        for path, future in flying:
            yield path, future.result()


class CheckedContent:
    """A stored leaf as an update sees it (`vcjax.updates.Content`), each chunk checked.

    Args:
        reader: has the leaf.
        path: under which path.
        spec: of the leaf.
    """

    def __init__(self, reader: PartialReader, path: str, spec: LeafSpec):
        self._reader = reader
        self._path = path
        self.dtype = spec.dtype
        self.shape = spec.shape

    def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See `vcjax.updates.Content`."""
        box: Box = tuple((0, length) for length in self.shape)
        if index is not None:
            box = box_of(index, self.shape)
        return self._reader.read_boxes(self._path, [box])[0]


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    return tuple(
        slice(start - begin, stop - begin)
        for (start, stop), (begin, _) in zip(part, whole, strict=True)
    )
