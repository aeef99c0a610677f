"""Writing leaves by any update: relative to several leaves, and several of them together."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vcjax import (
    tree,
    updates,  # tree.Leaf and tree.canonical load JAX: only on use
)
from vcjax.errors import CorruptionError, UpdateError, VcjaxError
from vcjax.hashing import canonical_msgpack, chunk_digests, joined_digest
from vcjax.hashing.regions import box_of, chunk_boxes
from vcjax.history import LeafEntry
from vcjax.objects import write as writing
from vcjax.objects import zarr as arrays
from vcjax.objects.chain import ChainReader
from vcjax.objects.header import ArrayHeader, is_whole
from vcjax.objects.layout import group_key, leaf_key
from vcjax.objects.link import Link
from vcjax.objects.relation import PART_NAME, Base, Relation, StoredPart
from vcjax.objects.write import ArrayWriter, StagedLeaf
from vcjax.storage import Store
from vcjax.tree import LeafSpec, itemsize, storage_dtype

MAX_READS = updates.MAX_READS // 2
"""How many objects may go into a leaf that is written; differences may stand on it yet."""


class _NewContent:
    """A leaf that is to be stored; see `vcjax.updates.Content`."""

    def __init__(self, leaf: StagedLeaf):
        self._leaf = leaf
        self.dtype = leaf.spec.dtype
        self.shape = leaf.spec.shape

    def read(self, index: updates.Index | None = None) -> np.ndarray:
        if index is None:
            return tree.canonical(self._leaf.leaf)
        region = tuple(slice(*span) for span in box_of(index, self.shape))
        return tree.canonical(self._leaf.leaf, region)


class GroupWriter:
    """Writes leaves by an update: its parts, then the headers that say how to apply it.

    Args:
        store: where to.
        compress: whether the parts are compressed.
    """

    def __init__(self, store: Store, compress: bool):
        self._store = store
        self._compress = compress
        self._writer = ArrayWriter(store, compress)

    def write(
        self,
        update: str,
        bases: Sequence[tuple[LeafEntry, updates.Content]],
        new: Sequence[StagedLeaf],
    ) -> None:
        """Writes leaves, durably once the store was synced.

        Nothing is published before every leaf was read back through the update and
        has its digest.

        Args:
            update: name of an installed update.
            bases: where each base is, and its content, checked as it is read.
            new: the leaves that are stored together. Those that exist stay as they are.

        Raises:
            UpdateError: the update cannot express the leaves, or does not give them back.
            UnknownFormatError: it is not installed.
        """
        contents = tuple(content for _, content in bases)
        parts = _encoded(updates.update_named(update), contents, tuple(map(_NewContent, new)))
        relation = Relation(
            tuple(Base.of(entry) for entry, _ in bases),
            {name: self._planned(update, name, part) for name, part in parts.arrays.items()},
            _plain(update, parts.parameters),
            tuple(leaf_key(leaf.name) for leaf in new) if len(new) > 1 else (),
            updates.package_of(update),
        )
        digest = relation.digest(update)
        folder = group_key(digest) if relation.members else leaf_key(new[0].name)
        chains = ChainReader(self._store)
        links = self._links(update, relation, new, folder, chains)
        if not (relation.members and is_whole(self._store, folder)):
            for name, content in parts.arrays.items():
                self._send(f"{folder}/{name}", relation.parts[name], content)
            self._writer.land_all()
        for leaf, link in zip(new, links, strict=True):
            _check(leaf, link, chains)
        self._publish(links, folder, digest)

    def _planned(self, update: str, name: str, content: updates.Content) -> StoredPart:
        """What the header says of a part; reads it once."""
        if not PART_NAME.fullmatch(name):
            raise _refused(update, f"names a part {name!r}", "use letters, digits, `_` and `-`")
        chunks: list[bytes] = []
        for _, array in _runs(update, name, content):
            chunks += chunk_digests(array, content.shape)
        digest = joined_digest(content.dtype, content.shape, chunks)
        header = arrays.new_header(content.dtype, content.shape, digest, self._compress)
        return StoredPart(header.metadata, content.dtype, header.digest)

    def _send(self, key: str, part: StoredPart, content: updates.Content) -> None:
        """Starts writing a part."""
        header = ArrayHeader(part.metadata, part.digest, (), part.dtype, 0.0)
        folders = writing.folders_of(key, header, LeafSpec(part.dtype, part.shape), None)
        for index, array in _runs("", key, content):
            self._writer.send(key, header, [(index, array)], array.nbytes, folders)

    def _links(
        self,
        update: str,
        relation: Relation,
        new: Sequence[StagedLeaf],
        folder: str,
        chains: ChainReader,
    ) -> list[Link]:
        """The leaves as they will be read."""
        below = chains.below(folder, relation.bases)
        links = []
        for number, leaf in enumerate(new):
            dense = arrays.new_header(leaf.spec.dtype, leaf.spec.shape, leaf.digest, False)
            header = ArrayHeader(
                metadata={"zarr_format": 3, "node_type": "group"},
                digest=dense.digest,
                chunks=dense.chunks,
                dtype=dense.dtype,
                written=dense.written,
                update=update,
                depth=1 + max((link.depth for link in below.values()), default=0),
                shape=leaf.spec.shape,
                relation=None if relation.members else relation,
                group=relation.digest(update) if relation.members else None,
            )
            key, spec = leaf_key(leaf.name), leaf.spec
            links.append(Link(key, header, spec.dtype, spec.shape, relation, folder, number, below))
        if links[0].depth > updates.MAX_DEPTH or links[0].reads > MAX_READS:
            raise _refused(
                update,
                f"would stand on {links[0].reads - 1} objects, {links[0].depth} in a row",
                f"at most {MAX_READS - 1} and {updates.MAX_DEPTH} may be; take bases that are "
                "stored dense",
            )
        return links

    def _publish(self, links: Sequence[Link], folder: str, digest: str) -> None:
        """Writes the headers, those of the leaves last: what has none does not exist."""
        header, relation = links[0].header, links[0].relation
        assert relation is not None
        group = header
        if relation.members:
            group = ArrayHeader(
                header.metadata,
                digest,
                (),
                "",
                header.written,
                update=header.update,
                depth=header.depth,
                relation=relation,
            )
        inner = {f"{key}/zarr.json": data for key, data in group.inner(folder).items()}
        self._store.write_many(inner.items())
        if relation.members:
            self._store.write(f"{folder}/zarr.json", group.encode())
        fresh = {link.key: link for link in links if not is_whole(self._store, link.key)}
        self._store.write_many(
            (f"{key}/zarr.json", link.header.encode()) for key, link in fresh.items()
        )


def _refused(update: str, what: str, hint: str) -> UpdateError:
    return UpdateError(f"the update {update!r} {what}", hint=hint)


def _encoded(
    update: updates.Update, bases: Sequence[updates.Content], new: Sequence[updates.Content]
) -> updates.Parts:
    try:
        parts = update.encode(bases, new)
    except (VcjaxError, MemoryError):
        raise
    except Exception as error:  # a plug-in may raise anything
        raise _refused(
            update.name,
            f"cannot express {len(new)} by {len(bases)} leaves: {type(error).__name__}: {error}",
            "give it the bases that it is made for, or store the leaves dense",
        ) from error
    if not isinstance(parts, updates.Parts):
        raise _refused(
            update.name,
            f"encodes to {type(parts).__name__}",
            "its `encode` must return vcjax.updates.Parts",
        )
    return parts


def _plain(update: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they are when they have been read again."""
    try:
        plain = json.loads(json.dumps(dict(parameters), allow_nan=False))
        canonical_msgpack(plain)  # which the checksum of the header is taken of
    except (TypeError, ValueError, OverflowError) as error:
        hint = "use what JSON can hold, integers of at most 64 bits; put arrays into `arrays`"
        raise _refused(update, f"has parameters that cannot be stored: {error}", hint) from error
    return plain


def _runs(
    update: str, name: str, content: updates.Content
) -> Iterator[tuple[updates.Index, np.ndarray]]:
    """A content in regions of whole chunks, in order, and what is in each."""
    kind = storage_dtype(content.dtype)
    for box in chunk_boxes(content.shape, kind.itemsize):
        index = tuple(slice(*span) for span in box)
        array = np.asarray(content.read(index))
        wanted = kind, tuple(stop - start for start, stop in box)
        if (array.dtype, array.shape) != wanted:
            raise _refused(
                update,
                f"gives {array.dtype}{list(array.shape)} as a region of the part {name!r}, "
                f"not {wanted[0]}{list(wanted[1])}",
                "what it stores must have the dtype and shape that it says",
            )
        yield index, tree.canonical(tree.Leaf(LeafSpec(content.dtype, array.shape), array))


def _check(leaf: StagedLeaf, link: Link, chains: ChainReader) -> None:
    """Raises if an update does not give a leaf back."""
    found: list[bytes] = []
    try:
        for box in chunk_boxes(link.shape, itemsize(link.dtype)):
            found += chunk_digests(chains.read(link.key, link, box), link.shape)
    except CorruptionError as error:
        what = f"cannot be read back: {error.message}"
        raise _refused(link.header.update, what, _LOSSLESS) from error
    if tuple(found) != leaf.digest.chunks:
        what = f"does not give back leaf {link.leaf}, {link.dtype}{list(link.shape)}"
        raise _refused(link.header.update, what, _LOSSLESS)


_LOSSLESS = "`apply` must give every bit of what `encode` was given, for any region of it"
