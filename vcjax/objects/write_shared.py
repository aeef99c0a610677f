"""Storing leaves together: one process plans and concludes, each writes the chunks it owns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vcjax.hashing import LeafDigest, chunk_runs, chunk_slices
from vcjax.history import LeafEntry, Packed
from vcjax.objects import header as headers
from vcjax.objects import write as writing
from vcjax.objects import zarr as arrays
from vcjax.objects.header import ArrayHeader
from vcjax.objects.layout import INLINE_BYTES, PACKED_BYTES, leaf_key
from vcjax.objects.write import ArrayWriter, StagedLeaf
from vcjax.processes import Part
from vcjax.storage import Store
from vcjax.tree import LeafSpec, itemsize


@dataclass(frozen=True)
class Order:
    """A leaf object of which every process is to write the chunks that it owns.

    Attributes:
        path: leaf path of the leaf that is to be written.
        name: its digest, hexadecimal.
        own: the chunks that are written, of a difference; None for all of them.
    """

    path: str
    name: str
    own: tuple[int, ...] | None

    def to_list(self) -> list[Any]:
        """As MessagePack types."""
        return [self.path, self.name, None if self.own is None else list(self.own)]

    @classmethod
    def from_list(cls, fields: Sequence[Any]) -> "Order":
        """What `to_list` gave."""
        path, name, own = fields
        return cls(path, name, None if own is None else tuple(own))


class PartWriter:
    """Writes the chunks that this process owns.

    Args:
        store: where to.
        compress: whether new objects are compressed.
    """

    def __init__(self, store: Store, compress: bool):
        self._store = store
        self._compress = compress
        self._writer = ArrayWriter(store, compress)

    def write(self, order: Order, spec: LeafSpec, parts: Sequence[Part]) -> None:
        """Starts writing what an order asks for and `parts` hold."""
        width = itemsize(spec.dtype)
        wanted = None if order.own is None else frozenset(order.own)
        contents, chunks = [], []
        for part in parts:
            numbers = range(part.first, part.first + part.chunks)
            kept = [number for number in numbers if wanted is None or number in wanted]
            chunks += kept
            for first, last in chunk_runs(spec.shape, width, kept):
                region = chunk_slices(spec.shape, width, first, last)
                within = tuple(
                    slice(axis.start - start, axis.stop - start)
                    for axis, (start, _) in zip(region, part.box, strict=True)
                )
                contents.append((region, part.data[within]))
        if not contents:
            return
        digest = LeafDigest(bytes.fromhex(order.name), ())
        header = arrays.new_header(spec.dtype, spec.shape, digest, self._compress)
        if order.own is not None:
            header = replace(header, update="difference", own=order.own)
        key = leaf_key(order.name)
        folders = writing.folders_of(key, header, spec, chunks)
        nbytes = sum(content.nbytes for _, content in contents)
        self._writer.send(key, header, contents, nbytes, folders)

    def finish(self) -> None:
        """Waits until everything is written and durable."""
        self._writer.land_all()
        self._store.sync()


class SharedPlan:
    """What is to be written of some leaves. For the one process that plans and concludes.

    Args:
        store: where the leaves go.
        compress: whether new objects are compressed.
        leaves: by leaf path; small ones with their data, others need none.
        known: {leaf digest: entry} of what is stored and referenced already.
    """

    def __init__(
        self,
        store: Store,
        compress: bool,
        leaves: Mapping[str, StagedLeaf],
        known: Mapping[str, LeafEntry],
    ):
        self._leaves = leaves
        self._known = known
        self._writer = ArrayWriter(store, compress)
        self._small: dict[str, StagedLeaf] = {}
        self._headers: list[tuple[StagedLeaf, ArrayHeader]] = []
        self.orders: list[Order] = []
        seen: set[str] = set()
        for path, leaf in leaves.items():
            if leaf.name in known or leaf.name in seen or leaf.nbytes <= INLINE_BYTES:
                continue
            seen.add(leaf.name)
            if leaf.nbytes < PACKED_BYTES:
                self._small[leaf.name] = leaf
            elif not headers.is_whole(store, leaf_key(leaf.name)):
                header = self._writer.header_of(leaf)
                self._headers.append((leaf, header))
                self.orders.append(Order(path, leaf.name, header.own))

    def conclude(self) -> dict[str, LeafEntry]:
        """Makes whole what all processes have written: packs and headers; the entries by path."""
        places: dict[str, Packed] = {}
        if self._small:
            places = self._writer.write_pack(list(self._small.values()))
        for leaf, header in self._headers:
            self._writer.conclude(leaf_key(leaf.name), leaf, header)
        self._writer.finish()
        entries = {
            path: writing.entry_of(leaf, leaf.nbytes <= INLINE_BYTES, self._known)
            for path, leaf in self._leaves.items()
        }
        return {
            path: replace(entry, packed=places[entry.digest]) if entry.digest in places else entry
            for path, entry in entries.items()
        }
