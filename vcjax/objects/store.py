"""Writing and reading leaves: inline, in packs, or as leaf objects."""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vcjax.errors import CorruptionError, MissingObjectError, StorageError
from vcjax.hashing import LeafDigest, chunk_grid, digest_array, digest_arrays
from vcjax.history import LeafEntry, Packed
from vcjax.objects import arrays
from vcjax.objects.arrays import ArrayHeader
from vcjax.storage import Store
from vcjax.tree import LeafSpec, storage_dtype

INLINE_BYTES = 256
"""Arrays up to this size are kept in the manifest itself."""

PACKED_BYTES = 64 * 1024
"""Arrays below this size share a pack: one small file each costs more than their bytes."""

PACK_ALIGNMENT = 64
"""Leaves start at multiples of this in a pack, so that views of it are aligned for JAX."""

IN_FLIGHT_BYTES = 128 * 1024 * 1024
"""How many bytes may be on their way to or from the store at once."""

RELY_SECONDS = 60.0
"""How long a mark that an object is relied upon serves for further commits."""

DELETION_SECONDS = 600.0
"""A deletion that takes longer than this was interrupted; a writer may take over."""


_Flying = tuple[str, LeafEntry, str, np.ndarray, Any]
"""Leaf path, entry, object key, buffer, and the future that fills it."""


@dataclass(frozen=True)
class StagedLeaf:
    """A leaf that is to be stored.

    Attributes:
        spec: dtype, shape, home.
        digest: its identity.
        array: canonical host array.
    """

    spec: LeafSpec
    digest: LeafDigest
    array: np.ndarray


def leaf_key(digest: str) -> str:
    """Where the leaf object with this digest is stored."""
    return f"leaves/{digest[:2]}/{digest}"


def pack_key(digest: str) -> str:
    """Where the pack with this digest is stored."""
    return f"packs/{digest[:2]}/{digest}"


@contextmanager
def _writing(store: Store, key: str) -> Iterator[None]:
    """Turns TensorStore's errors in writing an array into ours."""
    try:
        yield
    except _TENSORSTORE_ERRORS as error:
        text = str(error)
        hint = "check that the place exists and that you may write it; no earlier commit is touched"
        if "No space left" in text or "quota" in text or "RESOURCE_EXHAUSTED" in text:
            hint = "the disk is full: free space and try again; no earlier commit is touched"
        raise StorageError(f"cannot write {key} in {store.url}: {text}", hint=hint) from error


@contextmanager
def _reading(store: Store, key: str) -> Iterator[None]:
    """Turns TensorStore's errors in reading an array into ours."""
    try:
        yield
    except _TENSORSTORE_ERRORS as error:
        text = str(error)
        if "Permission denied" in text or "PERMISSION_DENIED" in text or "UNAVAILABLE" in text:
            raise StorageError(f"cannot read {key} in {store.url}: {text}") from error
        if "NOT_FOUND" in text or "missing" in text:
            raise MissingObjectError(
                f"{key} in {store.url} lacks a part of its data: {text}",
                hint="run `vcjax fsck`; restore the object from a copy of the repository",
            ) from error
        raise CorruptionError(
            f"{key} in {store.url} is damaged: {text}",
            hint="run `vcjax fsck`; restore the object from a copy of the repository",
        ) from error


_TENSORSTORE_ERRORS = (ValueError, OSError, RuntimeError, IndexError)
"""What TensorStore raises; `NotImplementedError` and `TimeoutError` are among these."""


class _ArrayWriter:
    """Writes the chunks of many arrays, then their headers: a header is the commit point."""

    def __init__(self, store: Store, compress: bool):
        self._store = store
        self._compress = compress
        self._headers: list[tuple[str, bytes]] = []
        self._flying: deque[tuple[str, StagedLeaf, Any]] = deque()
        self._in_flight = 0

    def write(self, key: str, leaf: StagedLeaf) -> None:
        """Starts writing an array; waits while too many bytes are in flight."""
        array, dtype = leaf.array, leaf.spec.dtype
        header = arrays.new_header(dtype, array.shape, leaf.digest, self._compress)
        while self._flying and self._in_flight + array.nbytes > IN_FLIGHT_BYTES:
            self._land()
        with _writing(self._store, key):
            target = arrays.open_array(self._store, key, header.metadata).result()
            view = arrays.stored_view(array, dtype)
            future = target.write(view, can_reference_source_data_indefinitely=True)
        self._flying.append((key, leaf, future))
        self._in_flight += array.nbytes
        self._headers.append((f"{key}/zarr.json", header.encode()))

    def finish(self) -> None:
        """Waits for all chunks and writes the headers."""
        while self._flying:
            self._land()
        self._store.write_many(self._headers)

    def _land(self) -> None:
        key, leaf, future = self._flying.popleft()
        with _writing(self._store, key):
            future.result()
        self._in_flight -= leaf.array.nbytes
        grid = chunk_grid(leaf.array.shape, leaf.array.dtype.itemsize)
        for index in np.ndindex(*grid[:-1]):  # every folder that chunks lie in
            self._store.written("/".join([key, "c", *map(str, index), "0"]))


class ObjectStore:
    """The leaf objects and packs of a repository.

    Args:
        store: where they are.
        compress: whether new objects are compressed.
    """

    def __init__(self, store: Store, compress: bool = False):
        self.store = store
        self.compress = compress

    # -- writing ---------------------------------------------------------------

    def write(
        self, leaves: Iterable[StagedLeaf], known: Mapping[str, LeafEntry]
    ) -> list[LeafEntry]:
        """Stores the leaves that are new and says where each one is.

        Args:
            leaves: what is to be stored; may hold equal ones. Drawn one by one, so
                that leaves are digested while earlier ones are being written.
            known: {leaf digest: entry} of what is stored and referenced already.

        Returns:
            One entry per leaf, in order. Durable once the store was synced.
        """
        staged: list[StagedLeaf] = []
        small: dict[str, StagedLeaf] = {}
        writer = _ArrayWriter(self.store, self.compress)
        seen: set[str] = set()
        for leaf in leaves:
            staged.append(leaf)
            digest = leaf.digest.leaf.hex()
            if digest in known or digest in seen or leaf.array.nbytes <= INLINE_BYTES:
                continue
            seen.add(digest)
            if leaf.array.nbytes < PACKED_BYTES:
                small[digest] = leaf
            elif not self._stored(leaf_key(digest)):
                writer.write(leaf_key(digest), leaf)
        places = self._write_pack(list(small.values()), writer) if small else {}
        writer.finish()
        return [self._entry(leaf, known, places) for leaf in staged]

    def _entry(
        self, leaf: StagedLeaf, known: Mapping[str, LeafEntry], places: Mapping[str, Packed]
    ) -> LeafEntry:
        digest = leaf.digest.leaf.hex()
        if digest in known:
            return replace(known[digest], spec=leaf.spec)
        chunks = leaf.digest.chunks if len(leaf.digest.chunks) > 1 else ()
        if leaf.array.nbytes <= INLINE_BYTES:
            return LeafEntry(leaf.spec, digest, (), leaf.array.tobytes(), None, True)
        return LeafEntry(leaf.spec, digest, chunks, packed=places.get(digest))

    def _stored(self, key: str) -> bool:
        """Whether an object exists; if so, it is marked as relied upon."""
        [header] = self.read_headers([key])
        return header is not None and self._rely_on(key, header)

    def _rely_on(self, key: str, header: ArrayHeader) -> bool:
        """Makes sure that an object that exists will not be collected before we refer to it.

        The collector spares what was relied upon within its grace window and takes
        an object only by compare-and-set of its header, so marking the header by
        compare-and-set settles who was first.
        """
        if time.time() - (header.relied or 0.0) < RELY_SECONDS and not header.deleting:
            return True
        deadline = time.time() + DELETION_SECONDS
        while True:
            versioned = self.store.read_versioned(f"{key}/zarr.json")
            if versioned.value is None:
                return False
            header = ArrayHeader.decode(key, versioned.value)
            if not header.deleting:
                renewed = replace(header, relied=time.time())
                if self.store.compare_and_set(f"{key}/zarr.json", renewed.encode(), versioned):
                    return True
            elif time.time() > min(deadline, header.used + DELETION_SECONDS):
                return False
            else:
                time.sleep(0.05)

    def _write_pack(
        self, leaves: Sequence[StagedLeaf], writer: "_ArrayWriter"
    ) -> dict[str, Packed]:
        offsets, end = [], 0
        for leaf in leaves:
            offsets.append(end)
            end += -(-leaf.array.nbytes // PACK_ALIGNMENT) * PACK_ALIGNMENT
        buffer = np.zeros(end, np.uint8)
        for leaf, offset in zip(leaves, offsets, strict=True):
            content = leaf.array.reshape(-1).view(np.uint8)
            buffer[offset : offset + leaf.array.nbytes] = content
        digest = digest_array("uint8", buffer)
        pack = digest.leaf.hex()
        staged = StagedLeaf(LeafSpec("uint8", buffer.shape, "numpy"), digest, buffer)
        if not self._stored(pack_key(pack)):
            writer.write(pack_key(pack), staged)
        return {
            leaf.digest.leaf.hex(): Packed(pack, offset, leaf.array.nbytes)
            for leaf, offset in zip(leaves, offsets, strict=True)
        }

    # -- reading ---------------------------------------------------------------

    def read_headers(self, keys: Sequence[str]) -> list[ArrayHeader | None]:
        """The headers of several objects; None for those that do not exist."""
        values = self.store.read_many([f"{key}/zarr.json" for key in keys])
        return [
            None if value is None else ArrayHeader.decode(key, value)
            for key, value in zip(keys, values, strict=True)
        ]

    def read(
        self, entries: Mapping[str, LeafEntry], verify: bool = True
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The content of array leaves, as canonical host arrays that the caller owns.

        Args:
            entries: {leaf path: entry}.
            verify: whether contents are checked against their digests.

        Raises:
            CorruptionError: a leaf is damaged or gone; names its path and object.
        """
        window: deque[tuple[str, LeafEntry, np.ndarray]] = deque()
        held = 0
        for path, entry, array in self._fetch(entries):
            window.append((path, entry, array))
            held += array.nbytes
            if held >= IN_FLIGHT_BYTES // 4:
                yield from self._verified(window, verify)
                held = 0
        yield from self._verified(window, verify)

    def _verified(
        self, window: deque[tuple[str, LeafEntry, np.ndarray]], verify: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        if verify:
            digests = digest_arrays((entry.spec.dtype, array) for _, entry, array in window)
            for (path, entry, _), digest in zip(window, digests, strict=True):
                if digest.leaf.hex() != entry.digest:
                    raise CorruptionError(
                        f"leaf {path!r} is damaged: the content of {_place(entry)} "
                        "does not have its digest",
                        path=path,
                        hint="run `vcjax fsck`; restore the object from a copy of the repository",
                    )
        while window:
            path, _, array = window.popleft()
            yield path, array

    def _fetch(
        self, entries: Mapping[str, LeafEntry]
    ) -> Iterator[tuple[str, LeafEntry, np.ndarray]]:
        packed: dict[str, list[tuple[str, LeafEntry]]] = defaultdict(list)
        objects: list[tuple[str, LeafEntry]] = []
        for path, entry in entries.items():
            if entry.is_inline:
                yield path, entry, _from_bytes(bytearray(entry.inline), entry)
            elif entry.packed is not None:
                packed[entry.packed.pack].append((path, entry))
            else:
                objects.append((path, entry))
        for pack, members in packed.items():
            yield from self._fetch_pack(pack, members)
        yield from self._fetch_objects(objects)

    def _fetch_objects(
        self, items: Sequence[tuple[str, LeafEntry]]
    ) -> Iterator[tuple[str, LeafEntry, np.ndarray]]:
        keys = [leaf_key(entry.digest) for _, entry in items]
        flying: deque[_Flying] = deque()
        in_flight = 0
        for (path, entry), key, header in zip(items, keys, self.read_headers(keys), strict=True):
            if header is None:
                raise MissingObjectError(
                    f"leaf {path!r} is gone: there is no {key}",
                    path=path,
                    hint="run `vcjax fsck`; restore the object from a copy of the repository",
                )
            _check_header(path, entry, key, header)
            while flying and in_flight + entry.nbytes > IN_FLIGHT_BYTES:
                in_flight -= flying[0][1].nbytes
                yield self._arrived(flying)
            with _reading(self.store, key):
                source = arrays.open_array(self.store, key, header.metadata).result()
                buffer, future = arrays.read_into(source, entry.spec.shape, entry.spec.dtype)
            flying.append((path, entry, key, buffer, future))
            in_flight += entry.nbytes
        while flying:
            yield self._arrived(flying)

    def _arrived(self, flying: deque[_Flying]) -> tuple[str, LeafEntry, np.ndarray]:
        path, entry, key, buffer, future = flying.popleft()
        try:
            with _reading(self.store, key):
                future.result()
        except CorruptionError as error:
            error.path = path
            error.message = f"leaf {path!r}: {error.message}"
            raise
        return path, entry, buffer

    def _fetch_pack(
        self, pack: str, members: Sequence[tuple[str, LeafEntry]]
    ) -> Iterator[tuple[str, LeafEntry, np.ndarray]]:
        """Reads the spans of a pack that the members lie in; near ones are read together."""
        key = pack_key(pack)
        [header] = self.read_headers([key])
        if header is None:
            raise MissingObjectError(
                f"leaf {members[0][0]!r} is gone: there is no {key}",
                path=members[0][0],
                hint="run `vcjax fsck`; restore the object from a copy of the repository",
            )
        with _reading(self.store, key):
            source = arrays.open_array(self.store, key, header.metadata).result()
        spans: list[list[tuple[str, LeafEntry]]] = []
        for path, entry in sorted(members, key=lambda member: _packed(member[1]).offset):
            place = _packed(entry)
            last = _packed(spans[-1][-1][1]) if spans else None
            if last is None or place.offset - (last.offset + last.length) > 1 << 20:
                spans.append([])
            spans[-1].append((path, entry))
        for span in spans:
            start = _packed(span[0][1]).offset
            stop = max(_packed(entry).offset + _packed(entry).length for _, entry in span)
            with _reading(self.store, key):
                buffer, future = arrays.read_into(source[start:stop], (stop - start,), "uint8")
                future.result()
            for path, entry in span:
                place = _packed(entry)
                offset = place.offset - start
                yield path, entry, _from_bytes(buffer[offset : offset + place.length], entry)


def _packed(entry: LeafEntry) -> Packed:
    assert entry.packed is not None
    return entry.packed


def _place(entry: LeafEntry) -> str:
    if entry.is_inline:
        return "the manifest"
    return pack_key(entry.packed.pack) if entry.packed else leaf_key(entry.digest)


def _from_bytes(data: bytearray | np.ndarray, entry: LeafEntry) -> np.ndarray:
    return np.frombuffer(data, storage_dtype(entry.spec.dtype)).reshape(entry.spec.shape)


def _check_header(path: str, entry: LeafEntry, key: str, header: ArrayHeader) -> None:
    if (
        header.digest != entry.digest
        or header.metadata.get("shape") != list(entry.spec.shape)
        or header.metadata.get("data_type") != arrays.zarr_dtype(entry.spec.dtype)
    ):
        raise CorruptionError(
            f"leaf {path!r} is damaged: {key}/zarr.json describes something else",
            path=path,
            hint="run `vcjax fsck`; restore the object from a copy of the repository",
        )
