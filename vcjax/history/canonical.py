"""Canonical MessagePack in and out, with strict limits on what is read."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import msgpack

from vcjax.errors import CorruptionError, UnknownFormatError
from vcjax.hashing import checksum, digest_bytes, pack

MAX_DEPTH = 128
"""How many levels a tree may be deep; MessagePack nests two per level."""

MAX_METADATA_DEPTH = 64
"""How many levels metadata may be nested; parsers of JSON have limits too."""

DIGEST_BYTES = 32

END_OF_TIME = 253_402_300_800
"""The year 10000, seconds since 1970 UTC."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


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
    except (
        *(ValueError, TypeError, OverflowError, RecursionError, MemoryError),
        msgpack.exceptions.UnpackException,
    ) as error:
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
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        cause = error
    except (RecursionError, MemoryError) as error:
        cause = error
    raise CorruptionError(f"{key} is damaged or missing", hint=hint) from cause


def check_members(
    what: str, fields: Mapping[str, Any], rules: Mapping[str, Callable[[Any], bool]], hint: str = ""
) -> None:
    """Refuses members that are not what they have to be: a checksum does not say who made it.

    Args:
        what: the object, for the message.
        fields: its members.
        rules: {name of a member: whether its value may be}; None stands for one that is not there.
        hint: what to do.

    Raises:
        CorruptionError: naming the members at fault.
    """
    wrong = [name for name, is_right in rules.items() if not is_right(fields.get(name))]
    if wrong:
        raise CorruptionError(f"{what} lacks or garbles {', '.join(wrong)}", hint=hint or None)


def is_text(value: object) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def is_count(value: object, most: int = 2**63 - 1) -> TypeGuard[int]:
    """Whether it is a whole number from 0 to `most`, and no bool."""
    return type(value) is int and 0 <= value <= most


def is_number(value: object) -> bool:
    """Whether it is a number, and no bool."""
    return type(value) in (int, float)


def is_time(value: object) -> bool:
    """Whether it is seconds since 1970 UTC that a calendar has: up to the year 9999."""
    return type(value) in (int, float) and 0 <= value < END_OF_TIME  # pyright: ignore


def is_digest(value: object) -> bool:
    """Whether it is a digest, 64 hexadecimal digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_raw_digest(value: object) -> bool:
    """Whether it is a digest as bytes."""
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether it is of JSON's types alone, not deeper than metadata may be."""
    if isinstance(value, dict):
        return depth <= MAX_METADATA_DEPTH and all(
            isinstance(key, str) and is_plain(child, depth + 1) for key, child in value.items()
        )
    if isinstance(value, list):
        return depth <= MAX_METADATA_DEPTH and all(is_plain(child, depth + 1) for child in value)
    return value is None or isinstance(value, bool | int | float | str)
