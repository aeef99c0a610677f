"""Reading leaves from wherever they lie, ahead of the consumer, in bounded memory."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts

from vcjax import updates
from vcjax.errors import CorruptionError, MissingObjectError
from vcjax.hashing import chunk_runs, chunk_slices
from vcjax.history import LeafEntry, Packed
from vcjax.objects import zarr as arrays
from vcjax.objects.header import ArrayHeader, read_headers
from vcjax.objects.layout import HINT, IN_FLIGHT_BYTES, array_errors, leaf_key, pack_key
from vcjax.storage import Store
from vcjax.tree import itemsize, storage_dtype

PACK_GAP_BYTES = 1 << 20
"""Leaves of a pack that are nearer than this are read in one go."""

Fetched = tuple[str, LeafEntry, np.ndarray]
"""Leaf path, entry, content."""


@dataclass(frozen=True)
class _Flight:
    """A leaf on its way from the store."""

    path: str
    entry: LeafEntry
    buffer: np.ndarray
    futures: tuple[Any, ...]


def fetch(store: Store, entries: Mapping[str, LeafEntry]) -> Iterator[Fetched]:
    """The contents of array leaves, not yet checked against their digests.

    Raises:
        CorruptionError: a leaf is damaged or gone; names its path and object.
    """
    packed: dict[str, list[tuple[str, LeafEntry, Packed]]] = defaultdict(list)
    objects: list[tuple[str, LeafEntry]] = []
    for path, entry in entries.items():
        if entry.is_inline:
            yield path, entry, _from_bytes(bytearray(entry.inline), entry)
        elif entry.packed is not None:
            packed[entry.packed.pack].append((path, entry, entry.packed))
        else:
            objects.append((path, entry))
    for pack, members in packed.items():
        yield from _fetch_pack(store, pack, members)
    yield from _fetch_objects(store, objects)


def _fetch_objects(store: Store, items: Sequence[tuple[str, LeafEntry]]) -> Iterator[Fetched]:
    headers = read_headers(store, [leaf_key(entry.digest) for _, entry in items])
    flying: deque[_Flight] = deque()
    in_flight = 0
    for (path, entry), header in zip(items, headers, strict=True):
        while flying and in_flight + entry.nbytes > IN_FLIGHT_BYTES:
            in_flight -= flying[0].entry.nbytes
            yield _arrived(store, flying.popleft())
        chain = chain_of(store, path, entry, header)
        buffer = arrays.aligned_buffer(entry.spec.shape, entry.spec.dtype)
        flying.append(_Flight(path, entry, buffer, _start(store, path, entry, chain, buffer)))
        in_flight += entry.nbytes
    while flying:
        yield _arrived(store, flying.popleft())


def chain_of(
    store: Store, path: str, entry: LeafEntry, header: ArrayHeader | None
) -> list[ArrayHeader]:
    """The header of a leaf object and those of the bases it stands on, all checked."""
    key, chain = leaf_key(entry.digest), []
    while True:
        if header is None:
            raise MissingObjectError(
                f"leaf {path!r} is gone: there is no {key}", path=path, hint=HINT
            )
        expected = key.rpartition("/")[2]
        if (
            header.digest != expected
            or header.metadata.get("shape") != list(entry.spec.shape)
            or header.metadata.get("data_type") != arrays.zarr_dtype(entry.spec.dtype)
            or len(chain) > updates.MAX_DEPTH
        ):
            raise CorruptionError(
                f"leaf {path!r} is damaged: {key}/zarr.json describes something else",
                path=path,
                hint=HINT,
            )
        chain.append(header)
        if header.base is None:
            return chain
        key = leaf_key(header.base)
        [header] = read_headers(store, [key])


def _start(
    store: Store, path: str, entry: LeafEntry, chain: Sequence[ArrayHeader], buffer: np.ndarray
) -> tuple[Any, ...]:
    """Starts filling a buffer, each chunk from the object of the chain that holds it."""
    target = ts.array(arrays.stored_view(buffer, entry.spec.dtype))
    key = leaf_key(entry.digest)
    with array_errors(store, key, path):
        opened = [
            arrays.open_array(store, head.array_key(leaf_key(head.digest)), head.metadata).result()
            for head in chain
        ]
        if len(chain) == 1:
            return (target.write(opened[0]),)
        shape, width = entry.spec.shape, itemsize(entry.spec.dtype)
        holders = updates.sources(len(chain[0].chunks), [head.own for head in chain])
        futures = []
        for at, source in enumerate(opened):
            held = [index for index, holder in enumerate(holders) if holder == at]
            for first, last in chunk_runs(shape, width, held):
                region = chunk_slices(shape, width, first, last)
                futures.append(target[region].write(source[region]))
    return tuple(futures)


def _arrived(store: Store, flight: _Flight) -> Fetched:
    with array_errors(store, leaf_key(flight.entry.digest), flight.path):
        for future in flight.futures:
            future.result()
    return flight.path, flight.entry, flight.buffer


def _fetch_pack(
    store: Store, pack: str, members: Sequence[tuple[str, LeafEntry, Packed]]
) -> Iterator[Fetched]:
    """Reads the spans of a pack that the members lie in; near ones are read together."""
    key, first = pack_key(pack), members[0][0]
    [header] = read_headers(store, [key])
    if header is None:
        raise MissingObjectError(
            f"leaf {first!r} is gone: there is no {key}", path=first, hint=HINT
        )
    with array_errors(store, key, first):
        source = arrays.open_array(store, key, header.metadata).result()
    spans: list[list[tuple[str, LeafEntry, Packed]]] = []
    end = 0
    for member in sorted(members, key=lambda member: member[2].offset):
        place = member[2]
        if not spans or place.offset - end > PACK_GAP_BYTES:
            spans.append([])
        spans[-1].append(member)
        end = max(end, place.offset + place.length)
    for span in spans:
        start = span[0][2].offset
        stop = max(place.offset + place.length for _, _, place in span)
        buffer = arrays.aligned_buffer((stop - start,), "uint8")
        with array_errors(store, key, span[0][0]):
            ts.array(buffer).write(source[start:stop]).result()
        for path, entry, place in span:
            offset = place.offset - start
            yield path, entry, _from_bytes(buffer[offset : offset + place.length], entry)


def _from_bytes(data: bytearray | np.ndarray, entry: LeafEntry) -> np.ndarray:
    return np.frombuffer(data, storage_dtype(entry.spec.dtype)).reshape(entry.spec.shape)
