"""What the header of a stored object says: above all, which other objects it stands on."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vcjax import updates
from vcjax.errors import CorruptionError, UnknownFormatError
from vcjax.hashing import checksum, chunk_count
from vcjax.history import canonical
from vcjax.history.collection import DELETION_SECONDS
from vcjax.history.manifest import check_shape
from vcjax.objects.array_metadata import are_chunks, checked_array
from vcjax.objects.layout import EMPTIED_SECONDS, RELY_SECONDS, group_key, leaf_key
from vcjax.objects.relation import Base, Relation, checked_digest
from vcjax.storage import Store
from vcjax.tree import storage_dtype

ATTRIBUTE = "vcjax"

DENSE = "dense"
DIFFERENCE = "difference"


@dataclass(frozen=True)
class ArrayHeader:
    """What `zarr.json` says of a stored object: a leaf, a pack, or a group of leaves.

    Attributes:
        metadata: the zarr v3 metadata without attributes.
        digest: leaf digest, hexadecimal; of a group, that of its relation.
        chunks: chunk digests, hexadecimal, in C order of the grid; none of a group.
        dtype: the leaf's dtype name, which may differ from zarr's; empty for a group.
        written: when it was written, seconds since 1970 UTC.
        relied: when a later commit last found it here and relied on it, or None.
        update: "dense", "difference", or the name of another update.
        base: leaf digest of the base, hexadecimal, for a difference.
        own: indices of the chunks that a difference holds itself; None for all.
        depth: 0 for dense, else 1 more than the deepest base's.
        deleting: whether a garbage collector is removing the object.
        shape: of a leaf of another update; None where `metadata` has it.
        relation: how another update expresses it; None if its group says that.
        group: digest of the group that it is stored in with other leaves, or None.
    """

    metadata: dict[str, Any]
    digest: str
    chunks: tuple[str, ...]
    dtype: str
    written: float
    relied: float | None = None
    update: str = DENSE
    base: str | None = None
    own: tuple[int, ...] | None = None
    depth: int = 0
    deleting: bool = False
    shape: tuple[int, ...] | None = None
    relation: Relation | None = None
    group: str | None = None

    @property
    def used(self) -> float:
        """When it was last written or relied upon, seconds since 1970 UTC."""
        return max(self.written, self.relied or 0.0)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The shape of the leaf, wherever that stands."""
        return tuple(self.metadata.get("shape", ())) if self.shape is None else self.shape

    @property
    def is_group(self) -> bool:
        """Whether it is of several leaves that are stored together, and itself no leaf."""
        return self.relation is not None and bool(self.relation.members)

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the objects without which this one cannot be read."""
        if self.base is not None:
            return (leaf_key(self.base),)
        if self.group is not None:
            return (group_key(self.group),)
        return () if self.relation is None else self.relation.keys

    @property
    def bases(self) -> tuple[Base, ...]:
        """The leaves that the object is relative to, unless its group says that."""
        if self.base is not None:
            return (Base(self.base, self.dtype, self.lengths),)
        return () if self.relation is None else self.relation.bases

    def encode(self) -> bytes:
        """The bytes of `zarr.json`: of an array if dense, else of a group."""
        attributes: dict[str, Any] = {"digest": self.digest}
        if not self.is_group:
            attributes |= {"chunks": list(self.chunks), "dtype": self.dtype}
        attributes |= {"update": self.update, "written": self.written}
        if self.relied is not None:
            attributes["relied"] = self.relied
        if self.deleting:
            attributes["deleting"] = True
        document = self.metadata
        if self.update != DENSE:
            attributes |= self._expressed()
            document = {"zarr_format": 3, "node_type": "group"}
        attributes["check"] = checksum(document | attributes)
        return json.dumps({**document, "attributes": {ATTRIBUTE: attributes}}).encode()

    def _expressed(self) -> dict[str, Any]:
        """The attributes that say how an object that is not dense is expressed."""
        if self.update == DIFFERENCE:
            own = list(self.own or ())
            fields = {"base": self.base, "own": own, "depth": self.depth}
            return fields | {"array": self.metadata}
        fields: dict[str, Any] = {"depth": self.depth}
        if self.shape is not None:
            fields["shape"] = list(self.shape)
        if self.group is not None:
            return fields | {"group": self.group}
        return fields | (self.relation.to_dict() if self.relation else {})

    def encode_metadata(self) -> bytes:
        """The bytes of the `zarr.json` of the array within a group: no attributes of ours."""
        return json.dumps(self.metadata).encode()

    def inner(self, key: str) -> dict[str, bytes]:
        """{key: bytes of its `zarr.json`} of the arrays within the group at `key`."""
        if self.update == DIFFERENCE:
            return {self.array_key(key): self.encode_metadata()}
        parts = {} if self.relation is None else self.relation.parts
        return {f"{key}/{name}": json.dumps(part.metadata).encode() for name, part in parts.items()}

    def array_key(self, key: str) -> str:
        """Where the array of the object at `key` is."""
        return key if self.update == DENSE else f"{key}/{self.update}"

    @classmethod
    def decode(cls, key: str, data: bytes) -> "ArrayHeader":
        """The header in a stored `zarr.json`; whether its update is installed is not asked.

        An empty one stands while the object is being deleted on a full disk, on which
        nothing longer could be written.

        Raises:
            CorruptionError: it cannot be parsed, or lacks its checksum.
            UnknownFormatError: it says in no way known to this version how it is expressed.
        """
        if not data:
            return cls({}, "", (), "", 0.0, deleting=True)
        try:
            document = json.loads(data)
            attributes = document.pop("attributes")[ATTRIBUTE]
            if attributes["check"] != checksum(document | attributes):
                raise ValueError("it does not have its checksum")
            canonical.check_members("it", attributes, _RULES)
            header = cls._of(document, attributes)
            if header.update in (DENSE, DIFFERENCE):
                header._check_chunks(attributes)
                return header
            if "group" not in attributes and "parts" not in attributes:
                raise UnknownFormatError(
                    f"{key} is stored as {header.update!r}, which this version cannot read",
                    hint="upgrade vcjax",
                )
            return header._completed(attributes)
        except (
            *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
            *(RecursionError, MemoryError, CorruptionError),
        ) as error:
            told = error.message if isinstance(error, CorruptionError) else repr(error)
            raise CorruptionError(
                f"{key}/zarr.json is damaged ({told})",
                hint="run `vcjax fsck`; restore the object from a copy of the repository",
            ) from error

    @classmethod
    def _of(cls, document: dict[str, Any], attributes: dict[str, Any]) -> "ArrayHeader":
        own, is_group = attributes.get("own"), "members" in attributes
        return cls(
            metadata=attributes.get("array", document),
            digest=attributes["digest"],
            chunks=tuple(() if is_group else attributes["chunks"]),
            dtype="" if is_group else attributes["dtype"],
            written=attributes["written"],
            relied=attributes.get("relied"),
            update=attributes["update"],
            base=attributes.get("base"),
            own=None if own is None else tuple(own),
            depth=attributes.get("depth", 0),
            deleting=attributes.get("deleting", False),
        )

    def _check_chunks(self, attributes: dict[str, Any]) -> None:
        """Refuses what does not fit together, before memory is spent on the word of it."""
        if self.update in (DENSE, DIFFERENCE):
            checked_array(self.metadata, self.dtype)
        itemsize = storage_dtype(self.dtype).itemsize
        check_shape("it", self.lengths, itemsize)
        if len(self.chunks) != chunk_count(self.lengths, itemsize):
            raise ValueError(f"it has {len(self.chunks)} chunk digests")
        if self.update == DIFFERENCE and not are_chunks(attributes.get("own"), len(self.chunks)):
            raise ValueError("it does not say which chunks it holds")

    def _completed(self, attributes: dict[str, Any]) -> "ArrayHeader":
        """With the attributes that updates other than `difference` have."""
        shape, group = attributes.get("shape"), attributes.get("group")
        completed = replace(
            self,
            shape=None if shape is None else tuple(shape),
            relation=Relation.from_dict(attributes) if group is None else None,
            group=None if group is None else checked_digest(group),
        )
        if not completed.is_group:
            completed._check_chunks(attributes)
        return completed


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(canonical.is_count, value))


_RULES: dict[str, Callable[[Any], bool]] = {
    "digest": canonical.is_digest,
    "chunks": lambda value: (
        value is None or (isinstance(value, list) and all(map(canonical.is_digest, value)))
    ),
    "dtype": lambda value: isinstance(value, str | None),
    "written": canonical.is_number,
    "relied": lambda value: value is None or canonical.is_number(value),
    "update": canonical.is_text,
    "base": lambda value: value is None or canonical.is_digest(value),
    "own": lambda value: value is None or _are_counts(value),
    "depth": lambda value: value is None or canonical.is_count(value),
    "deleting": lambda value: isinstance(value, bool | None),
    "shape": lambda value: value is None or _are_counts(value),
}


def read_headers(store: Store, keys: Sequence[str]) -> list[ArrayHeader | None]:
    """The headers of several objects; None for those that do not exist."""
    values = store.read_many([f"{key}/zarr.json" for key in keys])
    return [
        None if value is None else ArrayHeader.decode(key, value)
        for key, value in zip(keys, values, strict=True)
    ]


def read_needed(store: Store, key: str) -> dict[str, ArrayHeader]:
    """The headers of an object and of all that it stands on, by key, the nearest first.

    Empty if any of them is gone.
    """
    found: dict[str, ArrayHeader] = {}
    queue = [key]
    while queue:
        for name, header in zip(queue, read_headers(store, queue), strict=True):
            if header is None:
                return {}
            found[name] = header
        below = [need for name in queue for need in found[name].needs]
        queue = [name for name in dict.fromkeys(below) if name not in found]
    return found


def read_chain(store: Store, digest: str) -> list[ArrayHeader]:
    """The headers of a leaf object and of the bases that it has chunks of.

    The last one holds, or gives, all chunks. Empty if anything that they stand on is gone.
    """
    found = read_needed(store, leaf_key(digest))
    chain: list[ArrayHeader] = []
    base: str | None = digest
    while base is not None and found:
        if len(chain) > updates.MAX_DEPTH:
            return []
        chain.append(found[leaf_key(base)])
        base = chain[-1].base
    return chain


def is_stored(store: Store, key: str) -> bool:
    """Whether an object exists; if so, it is marked as relied upon.

    The collector spares what was relied upon within its grace window, with all
    that it stands on, and takes an object only by compare-and-set of its header;
    so marking the header by compare-and-set settles who was first.
    """
    [header] = read_headers(store, [key])
    if header is None:
        return False
    now = store.stamp()
    if now - (header.relied or 0.0) < RELY_SECONDS and not header.deleting:
        return True
    # By this process's own clock, too: another one may be set back meanwhile.
    deadline = time.monotonic() + (DELETION_SECONDS if header.digest else EMPTIED_SECONDS)
    while True:
        versioned = store.read_versioned(f"{key}/zarr.json")
        if versioned.value is None:
            return False
        header = ArrayHeader.decode(key, versioned.value)
        if not header.deleting:
            renewed = replace(header, relied=store.stamp())
            if store.compare_and_set(f"{key}/zarr.json", renewed.encode(), versioned):
                return True
        elif time.monotonic() > deadline or _was_interrupted(store, header):
            return False
        else:
            time.sleep(0.05)


def _was_interrupted(store: Store, header: ArrayHeader) -> bool:
    """Whether whoever was deleting an object must have died over it."""
    return bool(header.digest) and store.stamp() > header.used + DELETION_SECONDS


def is_whole(store: Store, key: str) -> bool:
    """Whether an object and all that it stands on exist; if so, all are marked."""
    needed = read_needed(store, key)
    return bool(needed) and all(is_stored(store, name) for name in needed)
