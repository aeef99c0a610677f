"""`ObjectStore`: leaves in, leaves out."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vcjax import updates
from vcjax.errors import CorruptionError, MissingObjectError, UpdateError
from vcjax.hashing import digest_arrays
from vcjax.history import LeafEntry
from vcjax.objects import header as headers
from vcjax.objects import read as reading
from vcjax.objects import write as writing
from vcjax.objects.header import ArrayHeader
from vcjax.objects.layout import (
    HINT,
    IN_FLIGHT_BYTES,
    INLINE_BYTES,
    PACKED_BYTES,
    leaf_key,
    pack_key,
    place_of,
)
from vcjax.objects.read_parts import CheckedContent, PartialReader, Wanted, read_boxes
from vcjax.objects.write import ArrayWriter, StagedLeaf
from vcjax.objects.write_group import GroupWriter
from vcjax.storage import Store


class ObjectStore:
    """The leaf objects and packs of a repository.

    Args:
        store: where they are.
        compress: whether new objects are compressed.
    """

    def __init__(self, store: Store, compress: bool = False):
        self.store = store
        self.compress = compress

    def write(
        self, leaves: Iterable[StagedLeaf], known: Mapping[str, LeafEntry]
    ) -> list[LeafEntry]:
        """Stores the leaves that are new and says where each one is.

        Args:
            leaves: what is to be stored; may hold equal ones. Drawn one by one, so
                that leaves are digested while earlier ones are being written, and
                not kept: only small ones are, which share a pack.
            known: {leaf digest: entry} of what is stored and referenced already.

        Returns:
            One entry per leaf, in order. Durable once the store was synced.
        """
        entries: list[LeafEntry] = []
        small: dict[str, StagedLeaf] = {}
        writer = ArrayWriter(self.store, self.compress)
        seen: set[str] = set()
        for leaf in leaves:
            entries.append(writing.entry_of(leaf, leaf.nbytes <= INLINE_BYTES, known))
            if leaf.name in known or leaf.name in seen or leaf.nbytes <= INLINE_BYTES:
                continue
            seen.add(leaf.name)
            if leaf.nbytes < PACKED_BYTES:
                small[leaf.name] = leaf
            elif not headers.is_whole(self.store, leaf_key(leaf.name)):
                writer.write_leaf(leaf)
        places = writer.write_pack(list(small.values())) if small else {}
        writer.finish()
        return [
            replace(entry, packed=places[entry.digest]) if entry.digest in places else entry
            for entry in entries
        ]

    def write_update(
        self, update: str, bases: Sequence[LeafEntry], new: Sequence[StagedLeaf]
    ) -> list[LeafEntry]:
        """Stores leaves by an update; a commit that has them then finds them stored.

        Several leaves are stored together, once, and each can be read alone. They are
        read back and compared with their digests before they count as stored. A
        `difference` is stored as a commit stores it: dense where that is better.

        Args:
            update: name of an installed update; see `vcjax.updates.Update`.
            bases: stored array leaves, in the order that the update wants them.
            new: array leaves. Those that are stored already stay as they are.

        Returns:
            One entry per leaf of `new`. Durable once the store was synced.

        Raises:
            UpdateError: the update cannot express these leaves, does not give them back,
                or the bases stand on too many others.
            UnknownFormatError: there is no such update.
            CorruptionError: a base is damaged or gone.

        Example:
            >>> repo = vcjax.Repository.init("memory://updated")
            >>> layers = np.zeros((4, 1024, 1024), np.float32)
            >>> _ = repo.commit({"layers": layers})
            >>> base = repo.manifest().leaves["layers"]
            >>> layers[2] += 1
            >>> [entry] = repo.objects.write_update("difference", [base], [StagedLeaf.of(layers)])
            >>> commit = repo.commit({"layers": layers})  # writes no leaf
            >>> repo.manifest(commit).leaves["layers"].digest == entry.digest
            True
        """
        _refuse(update, bases, new)
        if not all(headers.is_whole(self.store, leaf_key(leaf.name)) for leaf in new):
            if not self.hold(bases):
                raise MissingObjectError(
                    f"a base of the update {update!r} is gone", hint="take leaves that are stored"
                )
            contents = [self.content(entry, f"base {at}") for at, entry in enumerate(bases)]
            if update == headers.DIFFERENCE:
                updates.check_pair(contents, [leaf.spec for leaf in new])
                writer = ArrayWriter(self.store, self.compress)
                writer.write_leaf(replace(new[0], predecessor=bases[0]))
                writer.finish()
            else:
                pairs = list(zip(bases, contents, strict=True))
                GroupWriter(self.store, self.compress).write(update, pairs, new)
        return [writing.entry_of(leaf, False, {}) for leaf in new]

    def content(self, entry: LeafEntry, path: str = "") -> updates.Content:
        """A stored array leaf, any region of which can be read; chunks are checked.

        Args:
            entry: where it is.
            path: leaf path, for messages.

        Raises:
            CorruptionError: the leaf is damaged or gone.
        """
        if entry.is_object:
            return CheckedContent(self.open_parts({path: entry}), path, entry.spec)
        [(_, array)] = self.read({path: entry})
        return updates.ArrayContent(array, entry.spec.dtype)

    def needed_regions(self, leaf: StagedLeaf) -> list[tuple[slice, ...]] | None:
        """The regions of a new leaf that `write` would store; None where it would store all."""
        header = ArrayWriter(self.store, self.compress).header_of(leaf)
        return None if header.own is None else writing.regions_of(leaf, header.own)[0]

    def hold(self, entries: Sequence[LeafEntry]) -> bool:
        """Marks stored leaves as relied upon; False if one of them is gone."""
        keys = {pack_key(entry.packed.pack) for entry in entries if entry.packed is not None}
        keys |= {leaf_key(entry.digest) for entry in entries if entry.is_object}
        return all(headers.is_whole(self.store, key) for key in keys)

    def read_headers(self, keys: Sequence[str]) -> list[ArrayHeader | None]:
        """The headers of several objects; None for those that do not exist."""
        return headers.read_headers(self.store, keys)

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
        window: deque[reading.Fetched] = deque()
        held = 0
        for fetched in reading.fetch(self.store, entries):
            window.append(fetched)
            held += fetched[2].nbytes
            if held >= IN_FLIGHT_BYTES // 4:
                yield from _verified(window, verify)
                held = 0
        yield from _verified(window, verify)

    def read_boxes(
        self, wanted: Mapping[str, Wanted], verify: bool = True
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Parts of leaf objects: only the chunks that they lie in are read."""
        return read_boxes(self.store, wanted, verify)

    def open_parts(self, entries: Mapping[str, LeafEntry]) -> PartialReader:
        """Opens array leaves that have an object of their own, to read them chunk by chunk.

        Raises:
            CorruptionError: a leaf is damaged or gone; names its path and object.
        """
        return PartialReader(self.store, entries)


def _refuse(update: str, bases: Sequence[LeafEntry], new: Sequence[StagedLeaf]) -> None:
    """Raises where there is nothing that any update could store."""
    if not new:
        raise UpdateError(f"the update {update!r} is of no leaves", hint="give it one or several")
    if any(leaf.spec.is_value for leaf in (*bases, *new)):
        raise UpdateError(
            f"the update {update!r} is given a plain Python value",
            hint="updates are of arrays; put values into the parameters of the update",
        )


def _verified(window: deque[reading.Fetched], verify: bool) -> Iterator[tuple[str, np.ndarray]]:
    if verify:
        digests = digest_arrays((entry.spec.dtype, array) for _, entry, array in window)
        for (path, entry, _), digest in zip(window, digests, strict=True):
            if digest.leaf.hex() != entry.digest:
                raise CorruptionError(
                    f"leaf {path!r} is damaged: the content of {place_of(entry)} "
                    "does not have its digest",
                    path=path,
                    hint=HINT,
                )
    while window:
        path, _, array = window.popleft()
        yield path, array
