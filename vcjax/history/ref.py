"""One state of a ref or of `HEAD`, and its stored form."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vcjax.errors import CorruptionError
from vcjax.history import canonical
from vcjax.history.refnames import HEAD, HEADS, is_name, short_name


class ForeignRecordError(CorruptionError):
    """A ref, or an entry of its log, holds the record of another ref.

    Attributes:
        key: where it is.
        owner: full name of the ref whose record it is.
    """

    def __init__(self, key: str, owner: str, hint: str | None = None):
        super().__init__(f"{key} holds the record of {owner}", hint=hint or _HINT)
        self.key = key
        self.owner = owner

    @property
    def is_copy(self) -> bool:
        """Whether it is called as copies are that other programs make beside the original."""
        return self.key.startswith(self.owner)


_HINT = "run `vcjax fsck`; `log/` holds its earlier states"


@dataclass(frozen=True, slots=True)
class Ref:
    """One state of a ref.

    Attributes:
        name: full name, for example "refs/heads/main".
        commit: digest it points to.
        sequence: 1 for the first state of this name, then counting up.
        time: when it was set, seconds since 1970 UTC.
        reason: which operation set it, for example "commit: first try".
        restores: the sequence number that an `undo` went back to.
        nonce: makes every state unique, so that a lost response is told from a lost race.

    The log also holds one state without a commit (`commit == ""`) for every time
    that the ref was deleted. A detached `HEAD` is a ref too, called "HEAD"; while
    `HEAD` is on a branch, that ref counts as deleted.
    """

    name: str
    commit: str
    sequence: int
    time: float
    reason: str
    restores: int | None = None
    nonce: str = ""

    @property
    def short(self) -> str:
        """The name as users type it: "main", "v1.0", "origin/main"."""
        return short_name(self.name)

    @property
    def log_key(self) -> str:
        """Where the log keeps this state."""
        return log_key(self.name, self.sequence)

    def encode(self) -> bytes:
        """The stored form: JSON, one line."""
        body: dict[str, Any] = {
            "name": self.name,
            "commit": self.commit,
            "sequence": self.sequence,
            "time": self.time,
            "reason": self.reason,
            "nonce": self.nonce,
        }
        if self.restores is not None:
            body["restores"] = self.restores
        return canonical.encode_record(body)


@dataclass(frozen=True, slots=True)
class Head:
    """What `HEAD` points to: a branch by its short name, or a commit when detached.

    Attributes:
        branch: the short name of the branch; None when detached.
        commit: digest of the commit when detached; None on a branch.
        tip: digest of the commit where the branch or the detached `HEAD` is; None
            where there is none yet, or nobody looked.
    """

    branch: str | None
    commit: str | None = None
    tip: str | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        at = self.tip or self.commit
        where = f"at {at[:8]}" if at else "without a commit"
        return f"<Head on {self.branch}, {where}>" if self.branch else f"<Head detached, {where}>"

    def encode(self) -> bytes:
        """The stored form of a `HEAD` on a branch; a detached one is stored as a `Ref`."""
        return canonical.encode_record({"ref": f"{HEADS}{self.branch}", "nonce": _nonce()})


def log_key(name: str, sequence: int) -> str:
    """Where the log keeps the state of a ref with this number."""
    return f"log/{name}@{sequence:012d}.json"


def new_ref(name: str, commit: str, sequence: int, reason: str, restores: int | None = None) -> Ref:
    """A state that a ref takes on now."""
    return Ref(name, commit, sequence, time.time(), reason, restores, _nonce())


def _nonce() -> str:
    return os.urandom(8).hex()  # as `secrets` does, which loads OpenSSL: 0.01 s


def decode_ref(name: str, value: bytes, key: str | None = None) -> Ref:
    """The state of a ref in its stored bytes.

    Args:
        name: full name of the ref.
        value: the bytes.
        key: where they are stored, if not under the name.

    Raises:
        ForeignRecordError: they are those of another ref.
        CorruptionError: they are damaged, or those of another state.
    """
    body = _record(key or name, value)
    if body.get("name", name) != name:  # records of version 1 do not say it
        raise ForeignRecordError(key or name, str(body["name"]))
    try:
        ref = Ref(
            name,
            body["commit"],
            body["sequence"],
            body["time"],
            body["reason"],
            body.get("restores"),
            body["nonce"],
        )
    except KeyError as error:
        raise CorruptionError(f"{key or name} lacks {error}") from error
    canonical.check_members(key or name, body, _RULES, "`log/` holds its earlier states")
    if key is not None and key != ref.log_key:
        raise CorruptionError(f"{key} holds another state, number {ref.sequence}")
    return ref


MAX_SEQUENCE = 10**12 - 1
"""What the names in the log have room for."""

_RULES: dict[str, Callable[[Any], bool]] = {
    "commit": lambda value: value == "" or canonical.is_digest(value),
    "sequence": lambda value: canonical.is_count(value, MAX_SEQUENCE),
    "time": canonical.is_time,
    "reason": canonical.is_text,
    "restores": lambda value: value is None or canonical.is_count(value, MAX_SEQUENCE),
    "nonce": canonical.is_text,
}


def decode_head(value: bytes | None) -> Head:
    """What `HEAD` points to, from its stored bytes.

    Raises:
        CorruptionError: it is missing or garbled.
    """
    body = _record(HEAD, value or b"")
    ref = body.get("ref")
    if isinstance(ref, str) and ref.startswith(HEADS) and is_name(ref[len(HEADS) :]):
        return Head(ref[len(HEADS) :])
    if canonical.is_digest(body.get("commit")):
        return Head(None, body["commit"])
    raise CorruptionError("HEAD is garbled", hint="`vcjax switch BRANCH` writes it anew")


def decode_detached(value: bytes | None) -> Ref | None:
    """The state of a detached `HEAD` in its stored bytes; None if it is on a branch.

    Raises:
        CorruptionError: it is missing or damaged.
    """
    stored = value or b""
    return None if "ref" in _record(HEAD, stored) else decode_ref(HEAD, stored)


def _record(key: str, value: bytes) -> dict[str, Any]:
    hint = "`vcjax switch BRANCH` writes it anew" if key == HEAD else _HINT
    return canonical.decode_record(key, value, hint)
