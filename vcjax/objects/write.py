"""Staging trees and writing leaves: as objects (dense, or relative to a base) and in packs."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vcjax import (
    hashing,
    tree,
    updates,  # tree.Leaf and tree.canonical load JAX: only on use
)
from vcjax.errors import VcjaxError
from vcjax.hashing import (
    LeafDigest,
    chunk_grid,
    chunk_runs,
    chunk_slices,
    digest_array,
    value_digest,
)
from vcjax.hashing.digests import encode_value
from vcjax.history import LeafEntry, Manifest, Packed
from vcjax.history.manifest import check_depth
from vcjax.objects import zarr as arrays
from vcjax.objects.header import DIFFERENCE, ArrayHeader, is_whole, read_chain
from vcjax.objects.layout import (
    IN_FLIGHT_BYTES,
    LAZY_IN_FLIGHT_BYTES,
    PACK_ALIGNMENT,
    array_errors,
    leaf_key,
    pack_key,
)
from vcjax.storage import Store
from vcjax.tree import LeafSpec, itemsize

if TYPE_CHECKING:
    from vcjax.objects.store import ObjectStore


@dataclass(frozen=True)
class StagedLeaf:
    """A leaf that is to be stored.

    Attributes:
        leaf: spec and data, wherever the data are.
        digest: its identity.
        predecessor: the leaf of the same path in the commit before, if there is one.
        is_transient: whether the data are there for this alone, and take no memory
            once they are written.
    """

    leaf: "tree.Leaf"
    digest: LeafDigest
    predecessor: LeafEntry | None = None
    is_transient: bool = False

    @classmethod
    def of(cls, value: Any) -> "StagedLeaf":
        """A leaf of an array, digested where it lives.

        Raises:
            UnsupportedLeafError: values of this kind cannot be stored.
        """
        leaf = tree.make_leaf(value)
        return cls(leaf, hashing.digest_leaves({"": leaf})[""])

    @cached_property
    def name(self) -> str:
        """Its leaf digest, hexadecimal."""
        return self.digest.leaf.hex()

    @property
    def spec(self) -> LeafSpec:
        """Its dtype, shape and home."""
        return self.leaf.spec

    @cached_property
    def nbytes(self) -> int:
        """Size of its canonical bytes."""
        return math.prod(self.spec.shape) * itemsize(self.spec.dtype)


@dataclass(frozen=True)
class _Flight:
    """An array on its way to the store."""

    key: str
    nbytes: int
    futures: tuple[Any, ...]
    folders: tuple[str, ...]


class ArrayWriter:
    """Writes the chunks of many arrays, then their headers: a header is the commit point."""

    def __init__(self, store: Store, compress: bool):
        self._store = store
        self._compress = compress
        self._headers: list[tuple[str, bytes]] = []
        self._inner: list[tuple[str, bytes]] = []
        self._flying: deque[_Flight] = deque()
        self._in_flight = 0

    def write_leaf(self, leaf: StagedLeaf) -> None:
        """Starts writing a leaf object; waits while too many bytes are in flight."""
        self._write(leaf_key(leaf.name), leaf, self._difference(leaf))

    def write_pack(self, leaves: Sequence[StagedLeaf]) -> dict[str, Packed]:
        """Starts writing leaves end to end; where each lies, by leaf digest."""
        contents = [tree.canonical(leaf.leaf).reshape(-1).view(np.uint8) for leaf in leaves]
        offsets, end = [], 0
        for content in contents:
            offsets.append(end)
            end += -(-content.size // PACK_ALIGNMENT) * PACK_ALIGNMENT
        buffer = np.zeros(end, np.uint8)
        for content, offset in zip(contents, offsets, strict=True):
            buffer[offset : offset + content.size] = content
        spec = LeafSpec("uint8", buffer.shape, "numpy")
        pack = StagedLeaf(tree.Leaf(spec, buffer), digest_array("uint8", buffer))
        if not is_whole(self._store, pack_key(pack.name)):
            self._write(pack_key(pack.name), pack, None)
        return {
            leaf.name: Packed(pack.name, offset, content.size)
            for leaf, offset, content in zip(leaves, offsets, contents, strict=True)
        }

    def finish(self) -> None:
        """Waits for all chunks and writes the headers, those of inner arrays first.

        The outer header says that the object is whole, so it must not stand alone
        wherever a writer is killed.
        """
        self.land_all()
        self._store.write_many(self._inner)
        self._store.write_many(self._headers)

    def land_all(self) -> None:
        """Waits for all chunks."""
        while self._flying:
            self._land()

    def _difference(self, leaf: StagedLeaf) -> updates.Difference | None:
        """How the leaf is expressed relative to its predecessor, or what that stands on."""
        before = leaf.predecessor
        if before is None or not before.is_object or not before.chunks:
            return None
        if (before.spec.dtype, before.spec.shape) != (leaf.spec.dtype, leaf.spec.shape):
            return None
        chunks = [chunk.hex() for chunk in leaf.digest.chunks]
        chain = read_chain(self._store, before.digest)
        if not chain:
            return None
        ends = [chain[0], chain[-1]] if len(chain) > 1 else chain
        bases = [updates.BaseLeaf(head.digest, head.chunks, head.depth) for head in ends]
        return updates.choose_base(chunks, bases)

    def _write(self, key: str, leaf: StagedLeaf, difference: updates.Difference | None) -> None:
        header = self._header(leaf, difference)
        regions, nbytes = regions_of(leaf, header.own)
        contents = ((region, tree.canonical(leaf.leaf, region)) for region in regions)
        folders = folders_of(key, header, leaf.spec, header.own)
        limit = LAZY_IN_FLIGHT_BYTES if leaf.is_transient else IN_FLIGHT_BYTES
        self.send(key, header, contents, nbytes, folders, limit)
        self.conclude(key, leaf, header)

    def header_of(self, leaf: StagedLeaf) -> ArrayHeader:
        """The header of the leaf object that a new leaf becomes; no data are needed."""
        return self._header(leaf, self._difference(leaf))

    def _header(self, leaf: StagedLeaf, difference: updates.Difference | None) -> ArrayHeader:
        header = arrays.new_header(leaf.spec.dtype, leaf.spec.shape, leaf.digest, self._compress)
        written = self._store.stamp()
        if difference is None:
            return replace(header, written=written)
        return replace(
            header,
            written=written,
            update=DIFFERENCE,
            base=difference.base,
            own=difference.own,
            depth=difference.depth,
        )

    def conclude(self, key: str, leaf: StagedLeaf, header: ArrayHeader) -> None:
        """Notes the headers that `finish` writes for an object."""
        if header.update != "dense":  # so that any zarr reader finds the array in the group
            dense = self._header(leaf, None)
            folder = header.array_key(key)
            self._inner.append((f"{folder}/zarr.json", dense.encode_metadata()))
        self._headers.append((f"{key}/zarr.json", header.encode()))

    def send(
        self,
        key: str,
        header: ArrayHeader,
        contents: Iterable[tuple[tuple[slice, ...], np.ndarray]],
        nbytes: int,
        folders: tuple[str, ...],
        limit: int = IN_FLIGHT_BYTES,
    ) -> None:
        """Starts writing chunks of an object; waits while too many bytes are in flight.

        Args:
            contents: regions of the leaf, made of whole chunks, and their canonical content.
            nbytes: how many bytes that is.
            folders: those that the chunks lie in.
            limit: how many bytes may be in flight.
        """
        while self._flying and self._in_flight + nbytes > limit:
            self._land()
        with array_errors(self._store, key, writing=True):
            self._store.empty_leftovers(key)
            folder = header.array_key(key)
            target = arrays.open_array(self._store, folder, header.metadata).result()
            futures = tuple(
                target[region].write(
                    arrays.stored_view(content, header.dtype),
                    can_reference_source_data_indefinitely=True,
                )
                for region, content in contents
            )
        self._flying.append(_Flight(key, nbytes, futures, folders))
        self._in_flight += nbytes

    def _land(self) -> None:
        flight = self._flying.popleft()
        with array_errors(self._store, flight.key, writing=True):
            for future in flight.futures:
                future.result()
        self._in_flight -= flight.nbytes
        for folder in flight.folders:
            self._store.written(f"{folder}/0")


def regions_of(leaf: StagedLeaf, own: Sequence[int] | None) -> tuple[list[tuple[slice, ...]], int]:
    """The regions of a leaf that are written, and their size in bytes.

    Args:
        leaf: the leaf.
        own: the chunks that are written; None for all.
    """
    spec = leaf.spec
    if own is None:
        return [tuple(slice(0, length) for length in spec.shape)], leaf.nbytes
    width = itemsize(spec.dtype)
    runs = chunk_runs(spec.shape, width, own)
    regions = [chunk_slices(spec.shape, width, first, last) for first, last in runs]
    sizes = [math.prod(axis.stop - axis.start for axis in region) for region in regions]
    return regions, sum(sizes) * width


def folders_of(
    key: str, header: ArrayHeader, spec: LeafSpec, own: Sequence[int] | None
) -> tuple[str, ...]:
    """Every folder that chunks of an object lie in; `own` are those written, None for all."""
    grid = chunk_grid(spec.shape, itemsize(spec.dtype))
    inner = np.ndindex(*grid[:-1])
    if own is not None:
        inner = sorted({tuple(map(int, np.unravel_index(at, grid)))[:-1] for at in own})
    return tuple("/".join([header.array_key(key), "c", *map(str, index)]) for index in inner)


def entry_of(
    leaf: StagedLeaf,
    inline: bool,
    known: Mapping[str, LeafEntry],
) -> LeafEntry:
    """What the manifest says of a leaf that is stored; where in a pack it lies is told later."""
    if leaf.name in known:
        return replace(known[leaf.name], spec=leaf.spec)
    if inline:
        content = tree.canonical(leaf.leaf).tobytes()
        return LeafEntry(leaf.spec, leaf.name, (), content, None, True)
    chunks = leaf.digest.chunks if len(leaf.digest.chunks) > 1 else ()
    return LeafEntry(leaf.spec, leaf.name, chunks)


def stage(
    root: Any,
    objects: "ObjectStore",
    before: Manifest | None = None,
    digests: Iterable[tuple[str, LeafDigest]] | None = None,
) -> Manifest:
    """Stores the leaves of a flattened tree that are new; its manifest.

    Args:
        root: what `vcjax.tree.flatten` gave.
        objects: where to store them.
        before: the commit that this one follows: what it has is not stored again,
            and its leaves are bases for those that replace them.
        digests: leaf path and digest of every array leaf that is not lazy, in any
            order; drawn one by one. Computed here by default. Lazy leaves are read,
            digested and written last, two of them in memory at a time.
    """
    check_depth(root)
    leaves = tree.leaf_dict(root)
    lazy = {path: leaf for path, leaf in leaves.items() if leaf.is_lazy}
    arrays = {
        path: leaf for path, leaf in leaves.items() if not leaf.spec.is_value and path not in lazy
    }
    former = before.leaves if before else {}
    order: list[str] = []

    def staged() -> Iterator[StagedLeaf]:
        for path, digest in hashing.iter_digests(arrays) if digests is None else digests:
            order.append(path)
            yield StagedLeaf(arrays[path], digest, former.get(path))
        for path, leaf in lazy.items():
            order.append(path)
            yield _loaded(path, leaf, former.get(path))

    written = objects.write(staged(), before.locations if before else {})
    entries = dict(zip(order, written, strict=True))

    def entry(path: str, leaf: Any) -> LeafEntry:
        if path in entries:
            return entries[path]
        digest = value_digest(leaf.spec.dtype, leaf.data).hex()
        return LeafEntry(leaf.spec, digest, inline=encode_value(leaf.data), is_inline=True)

    return Manifest(tree.map_leaves(entry, root))


def _loaded(path: str, leaf: Any, former: LeafEntry | None) -> StagedLeaf:
    """A lazy leaf with its data."""
    try:
        here = tree.Leaf(leaf.spec, tree.canonical(leaf))
    except VcjaxError as error:
        if error.path is None:
            error.path, error.message = path, f"leaf {path!r}: {error.message}"
        raise
    [digest] = hashing.digest_arrays([(leaf.spec.dtype, here.data)])
    return StagedLeaf(here, digest, former, is_transient=True)
