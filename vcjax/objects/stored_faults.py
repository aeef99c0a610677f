"""What is wrong with how objects are stored, though their content can be read.

vcjax reads the copy of the arrays' `zarr.json` in a group's attributes, and of a chunk as
many bytes as it has: it would not notice what other readers of zarr stop at.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from vcjax.errors import VcjaxError
from vcjax.objects import zarr as arrays
from vcjax.objects.header import DENSE, ArrayHeader
from vcjax.objects.layout import HEADERS_AT_ONCE
from vcjax.objects.relation import Relation
from vcjax.objects.store import ObjectStore
from vcjax.storage import Store
from vcjax.tree import storage_dtype

CHECKSUM_BYTES = 4
"""What `crc32c` adds to a chunk."""

Fault = tuple[str, str]
"""(key, what is wrong)."""


def stored_faults(objects: ObjectStore, keys: Iterable[str]) -> Iterator[Fault]:
    """What is wrong with some objects, and with all that they stand on.

    Damaged and missing headers are passed over: whoever reads the leaf reports them, by
    its path.
    """
    queue, seen = sorted(keys), set()
    while queue:
        seen.update(queue)
        needs: set[str] = set()
        for start in range(0, len(queue), HEADERS_AT_ONCE):
            headers = read_whole(objects, queue[start : start + HEADERS_AT_ONCE])
            yield from _inner_faults(objects.store, headers)
            for key, header in headers:
                yield from _size_faults(objects.store, key, header)
                if header.relation is not None:
                    yield from _relation_faults(objects.store, key, header, header.relation)
                needs.update(header.needs)
        queue = sorted(needs - seen)


def read_whole(objects: ObjectStore, keys: Sequence[str]) -> list[tuple[str, ArrayHeader]]:
    """The keys of those objects whose header can be read, and the header."""
    found: list[tuple[str, ArrayHeader]] = []
    for key in keys:
        with suppress(VcjaxError):
            [header] = objects.read_headers([key])
            if header is not None:
                found.append((key, header))
    return found


def inner_faults(store: Store, headers: Iterable[tuple[str, ArrayHeader]]) -> dict[str, bytes]:
    """{key of a `zarr.json` within a group that is missing or differs: what it should be}."""
    groups = [(key, header) for key, header in headers if header.update != DENSE]
    inner = [
        (f"{k}/zarr.json", data) for key, header in groups for k, data in header.inner(key).items()
    ]
    values = store.read_many([key for key, _ in inner])
    return {key: data for (key, data), value in zip(inner, values, strict=True) if value != data}


def _inner_faults(store: Store, headers: Iterable[tuple[str, ArrayHeader]]) -> Iterator[Fault]:
    for key in inner_faults(store, headers):
        there = store.exists(key)
        yield key, "differs from what the group says of the array" if there else "is missing"


def excess(store: Store, key: str, header: ArrayHeader) -> dict[str, int]:
    """{chunk that is longer than it should be: how many bytes it should have}.

    Looked for where to ask for a size costs nothing: in a folder.
    """
    if store.location.folder is None:
        return {}
    folders = {header.array_key(key): header}
    if header.relation is not None:
        folders = {
            f"{key}/{name}": ArrayHeader(part.metadata, part.digest, (), part.dtype, 0.0)
            for name, part in header.relation.parts.items()
        }
    found: dict[str, int] = {}
    for folder, array in folders.items():
        if not array.dtype or arrays.raw_key(array, folder, ()) is None:
            continue
        shape = array.metadata["chunk_grid"]["configuration"]["chunk_shape"]
        nbytes = math.prod(shape) * storage_dtype(array.dtype).itemsize + CHECKSUM_BYTES
        chunks = store.keys(f"{folder}/c")
        found |= {chunk: nbytes for chunk in chunks if store.size(chunk) > nbytes}
    return found


def _size_faults(store: Store, key: str, header: ArrayHeader) -> Iterator[Fault]:
    for chunk, nbytes in excess(store, key, header).items():
        yield chunk, f"has {store.size(chunk):,} bytes, and {nbytes:,} were written"


def _relation_faults(
    store: Store, key: str, header: ArrayHeader, relation: Relation
) -> Iterator[Fault]:
    """Parts of an update that are not those that were written, and a group that is not its own."""
    if header.is_group and relation.digest(header.update) != key.rpartition("/")[2]:
        yield key, "is not of the leaves and parts that it is named by"
    for name, part in relation.parts.items():
        place = f"{key}/{name}"
        try:
            found = arrays.digest_stored(store, place, part.metadata, part.dtype)
        except VcjaxError as error:
            yield place, error.message
            continue
        if found.leaf.hex() != part.digest:
            yield place, "its content does not have its digest"
