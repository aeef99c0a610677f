"""Canonical MessagePack in and out, with strict limits on what is read."""

from typing import Any

import msgpack

from vcjax.errors import CorruptionError, UnknownFormatError
from vcjax.hashing import digest_bytes, pack

MAX_DEPTH = 128
"""How many levels a tree may be deep; MessagePack nests two per level."""


def encode(kind: str, version: int, fields: dict[str, Any]) -> bytes:
    """The bytes of an object of our own, tagged with its kind and format version.

    Args:
        fields: maps must be in order already (`canonical_msgpack`), at every depth.
    """
    tagged = {"format": f"vcjax.{kind}.{version}", **fields}
    return pack({key: tagged[key] for key in sorted(tagged)})


def decode(kind: str, version: int, name: str, data: bytes) -> dict[str, Any]:
    """The fields of an object of our own, after its digest was checked.

    Args:
        kind: "manifest" or "commit".
        version: the newest version that this code reads.
        name: the digest under which the object is stored, hexadecimal.
        data: its bytes.

    Raises:
        CorruptionError: the bytes do not have this digest, or are no such object.
        UnknownFormatError: written in a newer format.
    """
    if digest_bytes(data).hex() != name:
        raise CorruptionError(
            f"{kind} {name[:8]} is damaged: its bytes do not have this digest",
            hint="run `vcjax fsck` to see what else is damaged; restore the object from a copy",
        )
    try:
        fields = msgpack.unpackb(data, raw=False, unicode_errors="surrogatepass")
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise CorruptionError(f"{kind} {name[:8]} cannot be parsed: {error!r}") from error
    expected = f"vcjax.{kind}.{version}"
    found = fields.get("format") if isinstance(fields, dict) else None
    if found == expected:
        return fields
    if isinstance(found, str) and found.startswith(f"vcjax.{kind}."):
        raise UnknownFormatError(
            f"{kind} {name[:8]} is in format {found}; this version reads {expected}",
            hint="upgrade vcjax",
        )
    raise CorruptionError(f"{kind} {name[:8]} is not a {kind}")
