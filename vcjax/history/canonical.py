"""Canonical MessagePack in and out, with strict limits on what is read."""

import json
from typing import Any

import msgpack

from vcjax.errors import CorruptionError, UnknownFormatError
from vcjax.hashing import checksum, digest_bytes, pack

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


def encode_record(body: dict[str, Any]) -> bytes:
    """The bytes of a record that no digest names: one line of JSON with a checksum."""
    return json.dumps({**body, "check": checksum(body)}, sort_keys=True).encode() + b"\n"


def decode_record(key: str, data: bytes, hint: str) -> dict[str, Any]:
    """The members of a record that `encode_record` made.

    Args:
        key: where it is stored.
        data: its bytes.
        hint: what to do if it is damaged.

    Raises:
        CorruptionError: it cannot be parsed, or lacks its checksum.
    """
    cause: Exception | None = None
    try:
        body = json.loads(data)
        if body["check"] == checksum(body):
            return body
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        cause = error
    raise CorruptionError(f"{key} is damaged or missing", hint=hint) from cause
