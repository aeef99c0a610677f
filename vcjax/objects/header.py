"""What the header of a leaf object says, and the headers of the leaves it relies on."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vcjax import updates
from vcjax.errors import CorruptionError, UnknownFormatError
from vcjax.hashing import checksum
from vcjax.objects.layout import DELETION_SECONDS, RELY_SECONDS, leaf_key
from vcjax.storage import Store

ATTRIBUTE = "vcjax"


@dataclass(frozen=True)
class ArrayHeader:
    """What `zarr.json` says of a stored array.

    Attributes:
        metadata: the zarr v3 metadata without attributes.
        digest: leaf digest, hexadecimal.
        chunks: chunk digests, hexadecimal, in C order of the grid.
        dtype: the leaf's dtype name, which may differ from zarr's.
        written: when it was written, seconds since 1970 UTC.
        relied: when a later commit last found it here and relied on it, or None.
        update: "dense", or "difference" to a base.
        base: leaf digest of the base, hexadecimal, for a difference.
        own: indices of the chunks that a difference holds itself; None for all.
        depth: 0 for dense, else 1 more than the base's.
        deleting: whether a garbage collector is removing the object.
    """

    metadata: dict[str, Any]
    digest: str
    chunks: tuple[str, ...]
    dtype: str
    written: float
    relied: float | None = None
    update: str = "dense"
    base: str | None = None
    own: tuple[int, ...] | None = None
    depth: int = 0
    deleting: bool = False

    @property
    def used(self) -> float:
        """When it was last written or relied upon, seconds since 1970 UTC."""
        return max(self.written, self.relied or 0.0)

    def encode(self) -> bytes:
        """The bytes of `zarr.json`: of an array if dense, else of a group that holds one."""
        attributes: dict[str, Any] = {
            "digest": self.digest,
            "chunks": list(self.chunks),
            "dtype": self.dtype,
            "update": self.update,
            "written": self.written,
        }
        if self.relied is not None:
            attributes["relied"] = self.relied
        if self.deleting:
            attributes["deleting"] = True
        document = self.metadata
        if self.update == "difference":
            own = list(self.own or ())
            attributes |= {"base": self.base, "own": own, "depth": self.depth}
            attributes["array"] = self.metadata
            document = {"zarr_format": 3, "node_type": "group"}
        attributes["check"] = checksum(document | attributes)
        return json.dumps({**document, "attributes": {ATTRIBUTE: attributes}}).encode()

    def encode_metadata(self) -> bytes:
        """The bytes of the `zarr.json` of the array within a group: no attributes of ours."""
        return json.dumps(self.metadata).encode()

    def array_key(self, key: str) -> str:
        """Where the array of the object at `key` is."""
        return key if self.update == "dense" else f"{key}/{self.update}"

    @classmethod
    def decode(cls, key: str, data: bytes) -> "ArrayHeader":
        """The header in a stored `zarr.json`.

        Raises:
            CorruptionError: it cannot be parsed, or lacks its checksum.
            UnknownFormatError: an update that this version does not know.
        """
        try:
            document = json.loads(data)
            attributes = document.pop("attributes")[ATTRIBUTE]
            if attributes["check"] != checksum(document | attributes):
                raise ValueError("it does not have its checksum")
            if attributes["update"] not in ("dense", "difference"):
                raise UnknownFormatError(
                    f"{key} is stored as {attributes['update']!r}, which this version cannot read",
                    hint="upgrade vcjax",
                )
            own = attributes.get("own")
            return cls(
                metadata=attributes.get("array", document),
                digest=attributes["digest"],
                chunks=tuple(attributes["chunks"]),
                dtype=attributes["dtype"],
                written=attributes["written"],
                relied=attributes.get("relied"),
                update=attributes["update"],
                base=attributes.get("base"),
                own=None if own is None else tuple(own),
                depth=attributes.get("depth", 0),
                deleting=attributes.get("deleting", False),
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptionError(
                f"{key}/zarr.json is damaged ({error!r})",
                hint="run `vcjax fsck`; restore the object from a copy of the repository",
            ) from error


def read_headers(store: Store, keys: Sequence[str]) -> list[ArrayHeader | None]:
    """The headers of several objects; None for those that do not exist."""
    values = store.read_many([f"{key}/zarr.json" for key in keys])
    return [
        None if value is None else ArrayHeader.decode(key, value)
        for key, value in zip(keys, values, strict=True)
    ]


def read_chain(store: Store, digest: str) -> list[ArrayHeader]:
    """The headers of a leaf object and of the bases it stands on, the dense one last.

    Empty if any of them is gone.
    """
    chain: list[ArrayHeader] = []
    base: str | None = digest
    while base is not None:
        [header] = read_headers(store, [leaf_key(base)])
        if header is None or len(chain) > updates.MAX_DEPTH:
            return []
        chain.append(header)
        base = header.base
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
    if time.time() - (header.relied or 0.0) < RELY_SECONDS and not header.deleting:
        return True
    deadline = time.monotonic() + DELETION_SECONDS  # a clock may be set back meanwhile
    while True:
        versioned = store.read_versioned(f"{key}/zarr.json")
        if versioned.value is None:
            return False
        header = ArrayHeader.decode(key, versioned.value)
        if not header.deleting:
            renewed = replace(header, relied=time.time())
            if store.compare_and_set(f"{key}/zarr.json", renewed.encode(), versioned):
                return True
        elif time.monotonic() > deadline or time.time() > header.used + DELETION_SECONDS:
            return False
        else:
            time.sleep(0.05)


def is_whole(store: Store, digest: str) -> bool:
    """Whether a leaf object and all that it stands on exist; if so, all are marked."""
    chain = read_chain(store, digest)
    return bool(chain) and all(is_stored(store, leaf_key(header.digest)) for header in chain)
