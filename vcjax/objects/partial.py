"""Reading parts of leaves: only the chunks that those lie in, each checked against its digest."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorstore as ts

from vcjax import updates
from vcjax.errors import CorruptionError
from vcjax.hashing import chunk_runs, chunk_shape, chunk_slices, digest_spans, joined_digest
from vcjax.hashing.host import bytes_view
from vcjax.hashing.regions import REGION_BYTES, Box, chunk_box, overlap
from vcjax.history import LeafEntry
from vcjax.objects import arrays, reading
from vcjax.objects.arrays import ArrayHeader
from vcjax.objects.layout import HINT, array_errors, leaf_key
from vcjax.objects.writing import read_headers
from vcjax.storage import Store
from vcjax.tree import storage_dtype

AHEAD = 8
"""How many leaves are read at the same time."""

WINDOW = 4
"""How many runs of chunks of one leaf are read at the same time, of `REGION_BYTES` each."""


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
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="vcjax-read") as pool:
        flying: deque[tuple[str, Future[list[np.ndarray]]]] = deque()
        for path, leaf in wanted.items():
            if len(flying) == AHEAD:
                done, future = flying.popleft()
                yield done, future.result()
            flying.append((path, pool.submit(_read, store, path, leaf, verify)))
        for path, future in flying:
            yield path, future.result()


def _read(store: Store, path: str, wanted: Wanted, verify: bool) -> list[np.ndarray]:
    spec, dtype = wanted.entry.spec, storage_dtype(wanted.entry.spec.dtype)
    chain = _chain(store, path, wanted.entry, verify)
    chunks = [bytes.fromhex(chunk) for chunk in chain[0].chunks]
    shapes = [tuple(stop - start for start, stop in box) for box in wanted.boxes]
    buffers = [arrays.aligned_buffer(shape, spec.dtype) for shape in shapes]
    full = dtype.itemsize * math.prod(chunk_shape(spec.shape, dtype.itemsize))
    for (first, last), region, content in _runs(store, path, wanted, chain):
        if verify:
            view = bytes_view(content)
            starts = range(0, content.nbytes, full)
            found = digest_spans([(view, at, min(at + full, content.nbytes)) for at in starts])
            if found != chunks[first : last + 1]:
                raise CorruptionError(
                    f"leaf {path!r} is damaged: the content of {leaf_key(wanted.entry.digest)} "
                    "does not have its digest",
                    path=path,
                    hint=HINT,
                )
        for box, buffer in zip(wanted.boxes, buffers, strict=True):
            if (part := overlap(box, region)) is not None:
                buffer[_within(part, box)] = content[_within(part, region)]
    return buffers


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    return tuple(
        slice(start - begin, stop - begin)
        for (start, stop), (begin, _) in zip(part, whole, strict=True)
    )


def _chain(store: Store, path: str, entry: LeafEntry, verify: bool) -> list[ArrayHeader]:
    """The headers that a leaf stands on, their list of chunk digests checked as well."""
    [header] = read_headers(store, [leaf_key(entry.digest)])
    chain = reading.checked_chain(store, path, entry, header)
    digests = [bytes.fromhex(chunk) for chunk in chain[0].chunks]
    joined = joined_digest(entry.spec.dtype, entry.spec.shape, digests)
    if verify and joined.leaf.hex() != entry.digest:
        raise CorruptionError(
            f"leaf {path!r} is damaged: {leaf_key(entry.digest)}/zarr.json lists other chunks",
            path=path,
            hint=HINT,
        )
    return chain


def _runs(
    store: Store, path: str, wanted: Wanted, chain: Sequence[ArrayHeader]
) -> Iterator[tuple[tuple[int, int], Box, np.ndarray]]:
    """Runs of the chunks that some boxes lie in: first and last, their region, its content."""
    spec, width = wanted.entry.spec, storage_dtype(wanted.entry.spec.dtype).itemsize
    needed = [
        number
        for number in range(len(chain[0].chunks))
        if any(overlap(box, chunk_box(number, spec.shape, width)) for box in wanted.boxes)
    ]
    holders = updates.sources(len(chain[0].chunks), [head.own for head in chain])
    key = leaf_key(wanted.entry.digest)
    most = max(1, REGION_BYTES // (width * math.prod(chunk_shape(spec.shape, width))))

    def starts() -> Iterator[tuple[tuple[int, int], Callable[[], np.ndarray]]]:
        for at, head in enumerate(chain):
            held = [number for number in needed if holders[number] == at]
            if not held:
                continue
            folder = head.array_key(leaf_key(head.digest))
            source = arrays.open_array(store, folder, head.metadata).result()
            for run in _split(chunk_runs(spec.shape, width, held), most):
                yield run, _start(source, chunk_slices(spec.shape, width, *run), spec.dtype)

    with array_errors(store, key, path):
        flying: deque[tuple[tuple[int, int], Callable[[], np.ndarray]]] = deque()
        for item in starts():
            if len(flying) == WINDOW:
                yield _landed(wanted, *flying.popleft())
            flying.append(item)
        while flying:
            yield _landed(wanted, *flying.popleft())


def _split(runs: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """The same runs in pieces of at most so many chunks."""
    for first, last in runs:
        for start in range(first, last + 1, most):
            yield start, min(last, start + most - 1)


def _start(source: ts.TensorStore, region: tuple[slice, ...], dtype: str) -> Callable:
    shape = tuple(part.stop - part.start for part in region)
    buffer = arrays.aligned_buffer(shape, dtype)
    future = ts.array(arrays.stored_view(buffer, dtype)).write(source[region])

    def result() -> np.ndarray:
        future.result()
        return buffer

    return result


def _landed(
    wanted: Wanted, run: tuple[int, int], result: Callable[[], np.ndarray]
) -> tuple[tuple[int, int], Box, np.ndarray]:
    spec = wanted.entry.spec
    slices = chunk_slices(spec.shape, storage_dtype(spec.dtype).itemsize, *run)
    return run, tuple((part.start, part.stop) for part in slices), result()
