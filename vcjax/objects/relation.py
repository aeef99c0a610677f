"""What the header of an object says of an update: its bases, parts and parameters."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vcjax.hashing import canonical_msgpack, digest_bytes
from vcjax.history import LeafEntry, Packed, canonical
from vcjax.history.manifest import check_shape
from vcjax.objects.array_metadata import checked_array
from vcjax.objects.layout import leaf_key, pack_key
from vcjax.tree import storage_dtype

PART_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_MEMBER = re.compile(r"(leaves|packs)/([0-9a-f]{2})/\2[0-9a-f]{62}")


def checked_digest(text: str) -> str:
    """The same text.

    Raises:
        ValueError: it is no digest, hexadecimal.
    """
    if not canonical.is_digest(text):
        raise ValueError(f"{text!r} is no digest")
    return text


@dataclass(frozen=True)
class Base:
    """A leaf that others are relative to, and where it lies.

    Attributes:
        digest: leaf digest, hexadecimal.
        dtype: name of its dtype.
        shape: of the leaf.
        packed: its place in a pack; None for an object of its own.
        inline: its canonical bytes, where it lies in the manifests that have it.
    """

    digest: str
    dtype: str
    shape: tuple[int, ...]
    packed: Packed | None = None
    inline: bytes | None = None

    @classmethod
    def of(cls, entry: LeafEntry) -> "Base":
        """The base that a stored array leaf is."""
        spec, inline = entry.spec, entry.inline if entry.is_inline else None
        return cls(entry.digest, spec.dtype, spec.shape, entry.packed, inline)

    @property
    def key(self) -> str | None:
        """Where the object is that holds it; None if its bytes are here."""
        if self.inline is not None:
            return None
        return leaf_key(self.digest) if self.packed is None else pack_key(self.packed.pack)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        fields: dict[str, Any] = {"digest": self.digest, "dtype": self.dtype}
        fields["shape"] = list(self.shape)
        if self.packed is not None:
            fields["pack"] = [self.packed.pack, self.packed.offset, self.packed.length]
        if self.inline is not None:
            fields["inline"] = self.inline.hex()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Base":
        """What `to_dict` gave.

        Raises:
            ValueError, LookupError, TypeError or CorruptionError: it is nothing of the kind.
        """
        packed = Packed(*fields["pack"]) if "pack" in fields else None
        inline = bytes.fromhex(fields["inline"]) if "inline" in fields else None
        digest, dtype, shape = checked_digest(fields["digest"]), fields["dtype"], fields["shape"]
        if not isinstance(dtype, str) or not all(map(canonical.is_count, shape)):
            raise ValueError(f"base {digest[:8]} is a {dtype!r} of shape {shape!r}"[:200])
        itemsize = storage_dtype(dtype).itemsize
        check_shape(f"base {digest[:8]}", shape, itemsize)
        nbytes, held = math.prod(shape) * itemsize, None if inline is None else len(inline)
        if packed is not None:
            checked_digest(packed.pack)
            held = packed.length if canonical.is_count(packed.offset) else -1
        if held is not None and (type(held) is not int or held != nbytes):
            raise ValueError(f"base {digest[:8]} has not the {nbytes} bytes of its shape")
        return cls(digest, dtype, tuple(shape), packed, inline)


@dataclass(frozen=True)
class StoredPart:
    """An array that an update has stored.

    Attributes:
        metadata: its zarr v3 metadata.
        dtype: its dtype name, which may differ from zarr's.
        digest: leaf digest of its content, hexadecimal.
    """

    metadata: dict[str, Any]
    dtype: str
    digest: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(self.metadata["shape"])


@dataclass(frozen=True)
class Relation:
    """How leaves are expressed by an update.

    Attributes:
        bases: the leaves that they are relative to, in the update's order.
        parts: {name: array} of what is stored of them, in folders of these names.
        parameters: what JSON can hold, of the update's own.
        members: keys of the leaf objects, or packs, that are stored together, in the
            update's order; empty for a single one, which holds the parts itself.
        package: name and version of what provided the update; empty if unknown.
    """

    bases: tuple[Base, ...]
    parts: Mapping[str, StoredPart]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    package: str = ""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Where the bases are, each object once."""
        return tuple(dict.fromkeys(base.key for base in self.bases if base.key is not None))

    def digest(self, update: str) -> str:
        """What names a group: of all that its leaves follow from, wherever that lies."""
        bases = [bytes.fromhex(base.digest) for base in self.bases]
        parts = {
            name: [part.dtype, bytes.fromhex(part.digest)] for name, part in self.parts.items()
        }
        rest: Sequence[Any] = [update, dict(self.parameters), bases, list(self.members), parts]
        return digest_bytes(canonical_msgpack(["vcjax.group.1", *rest])).hex()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        parts = {
            name: {"dtype": part.dtype, "digest": part.digest, "array": part.metadata}
            for name, part in self.parts.items()
        }
        fields: dict[str, Any] = {
            "package": self.package,
            "bases": [base.to_dict() for base in self.bases],
            "parts": parts,
            "parameters": dict(self.parameters),
        }
        return fields | ({"members": list(self.members)} if self.members else {})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Relation":
        """What `to_dict` gave.

        Raises:
            ValueError, LookupError, TypeError, AttributeError or CorruptionError: it is nothing
                of the kind.
        """
        for name in fields["parts"]:
            if not PART_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a part")
        for key in fields.get("members", ()):
            if not _MEMBER.fullmatch(key):
                raise ValueError(f"{key!r} is no key of a leaf object or pack")
        parameters, package = fields["parameters"], fields.get("package", "")
        if not isinstance(parameters, dict) or not isinstance(package, str):
            raise ValueError("its parameters are no object, or its package is no text")
        return cls(
            tuple(map(Base.from_dict, fields["bases"])),
            {
                name: StoredPart(
                    checked_array(part["array"], part["dtype"]),
                    part["dtype"],
                    checked_digest(part["digest"]),
                )
                for name, part in fields["parts"].items()
            },
            parameters,
            tuple(fields.get("members", ())),
            package,
        )
