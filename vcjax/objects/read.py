"""Reading leaves from wherever they lie, ahead of the consumer, in bounded memory."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vcjax.history import LeafEntry, Packed
from vcjax.objects import zarr as arrays
from vcjax.objects.chain import ChainReader
from vcjax.objects.header import read_headers
from vcjax.objects.layout import IN_FLIGHT_BYTES, array_errors, leaf_key, pack_key
from vcjax.storage import Store
from vcjax.tree import storage_dtype

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
    chains = ChainReader(store)
    flying: deque[_Flight] = deque()
    in_flight = 0
    for (path, entry), header in zip(items, headers, strict=True):
        while flying and in_flight + entry.nbytes > IN_FLIGHT_BYTES:
            in_flight -= flying[0].entry.nbytes
            yield _arrived(store, flying.popleft())
        link = chains.leaf(path, entry, header)
        buffer = arrays.aligned_buffer(entry.spec.shape, entry.spec.dtype)
        flying.append(_Flight(path, entry, buffer, chains.start(path, link, buffer)))
        in_flight += entry.nbytes
    while flying:
        yield _arrived(store, flying.popleft())


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
    chains = ChainReader(store)
    link = chains.link(first, key, "uint8", None, header)
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
        buffer = chains.read(span[0][0], link, ((start, stop),))
        for path, entry, place in span:
            offset = place.offset - start
            yield path, entry, _from_bytes(buffer[offset : offset + place.length], entry)


def _from_bytes(data: bytearray | np.ndarray, entry: LeafEntry) -> np.ndarray:
    return np.frombuffer(data, storage_dtype(entry.spec.dtype)).reshape(entry.spec.shape)
