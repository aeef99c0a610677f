"""Commits: a manifest, its parents, and who, when, why and how good."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from vcjax.errors import CorruptionError, VcjaxError
from vcjax.hashing import digest_bytes
from vcjax.history import Manifest, canonical
from vcjax.history.listing import html_listing
from vcjax.history.metadata import checked_metadata, checked_metrics

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_RULES: dict[str, Callable[[Any], bool]] = {
    "manifest": canonical.is_raw_digest,
    "tree": canonical.is_raw_digest,
    "parents": lambda value: isinstance(value, list) and all(map(canonical.is_raw_digest, value)),
    "author": canonical.is_text,
    "time": lambda value: type(value) is int,
    "message": canonical.is_text,
    "metadata": lambda value: isinstance(value, dict) and canonical.is_plain(value),
    "metrics": lambda value: (
        isinstance(value, dict)
        and all(canonical.is_text(name) and canonical.is_number(value[name]) for name in value)
    ),
    "provenance": lambda value: isinstance(value, dict | None) and canonical.is_plain(value),
    "generation": canonical.is_count,
    "leaves": canonical.is_count,
    "nbytes": canonical.is_count,
}


def commit_key(digest: str) -> str:
    """Where the commit with this digest is stored."""
    return f"commits/{digest[:2]}/{digest}.msgpack"


@dataclass(frozen=True)
class Commit:
    """One recorded state of a PyTree.

    Attributes:
        manifest: digest of its manifest, 64 hex digits.
        tree: digest of the tree's content, whatever its storage; equal trees
            have equal ones.
        parents: digests of the commits it follows; two or more for a merge.
        author: "Name <address>".
        time: when it was made, UTC, to the microsecond.
        message: why.
        metadata: what JSON can hold; "step" has a meaning for `step:N`.
        metrics: {name: value}.
        provenance: how it was derived (merge method, creation function…), or None.
        generation: 1 + the largest generation of its parents, 1 for a root.
        leaves: how many leaves the tree has.
        nbytes: their size in memory, bytes.
    """

    manifest: str
    tree: str
    parents: tuple[str, ...]
    author: str
    time: datetime
    message: str
    metadata: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None
    generation: int = 1
    leaves: int = 0
    nbytes: int = 0
    digest: str = ""

    @property
    def step(self) -> int | None:
        """The training step, where the metadata has one."""
        step = self.metadata.get("step")
        return step if isinstance(step, int) else None

    @property
    def summary(self) -> str:
        """The first line of the message."""
        return self.message.partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.digest[:8]} {self.summary}"

    def __repr__(self) -> str:
        summary = self.summary if len(self.summary) <= 60 else f"{self.summary[:59]}…"
        size = f"{self.leaves:,} leaves, {self.nbytes:,} bytes"
        return f"<Commit {self.digest[:8]} {self.time:%Y-%m-%d %H:%M} {summary!r}: {size}>"

    def _repr_html_(self) -> str:
        rows = [("author", self.author), ("time", f"{self.time:%Y-%m-%d %H:%M:%S} UTC")]
        rows += [("parents", " ".join(parent[:8] for parent in self.parents) or "none")]
        rows += [("leaves", f"{self.leaves:,}, {self.nbytes:,} bytes")]
        rows += [(name, f"{value:g}") for name, value in self.metrics.items()]
        rows += [("step", str(self.step))] if self.step is not None else []
        return html_listing(str(self), ("", ""), rows)

    def encode(self) -> tuple[str, bytes]:
        """(digest, bytes) of this commit as it is stored."""
        data = canonical.encode(
            "commit",
            1,
            {
                "manifest": bytes.fromhex(self.manifest),
                "tree": bytes.fromhex(self.tree),
                "parents": [bytes.fromhex(parent) for parent in self.parents],
                "author": self.author,
                "time": (self.time - _EPOCH) // timedelta(microseconds=1),
                "message": self.message,
                "metadata": self.metadata,
                "metrics": self.metrics,
                "provenance": self.provenance,
                "generation": self.generation,
                "leaves": self.leaves,
                "nbytes": self.nbytes,
            },
        )
        return digest_bytes(data).hex(), data

    @classmethod
    def decode(cls, digest: str, data: bytes) -> "Commit":
        """The commit in some stored bytes.

        Raises:
            CorruptionError: they do not have this digest, or hold no commit.
        """
        fields = canonical.decode("commit", 1, digest, data)
        canonical.check_members(f"commit {digest[:8]}", fields, _RULES)
        try:
            return cls(
                manifest=fields["manifest"].hex(),
                tree=fields["tree"].hex(),
                parents=tuple(parent.hex() for parent in fields["parents"]),
                author=fields["author"],
                time=_EPOCH + timedelta(microseconds=fields["time"]),
                message=fields["message"],
                metadata=fields["metadata"],
                metrics=fields["metrics"],
                provenance=fields.get("provenance"),
                generation=fields["generation"],
                leaves=fields["leaves"],
                nbytes=fields["nbytes"],
                digest=digest,
            )
        except OverflowError as error:
            raise CorruptionError(f"commit {digest[:8]} claims a time of no calendar") from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for `--json`."""
        return {
            "digest": self.digest,
            "tree": self.tree,
            "manifest": self.manifest,
            "parents": list(self.parents),
            "author": self.author,
            "time": self.time.isoformat(),
            "message": self.message,
            "metadata": self.metadata,
            "metrics": self.metrics,
            "provenance": self.provenance,
            "leaves": self.leaves,
            "nbytes": self.nbytes,
        }


@dataclass(frozen=True)
class Details:
    """What a commit says besides its tree and its place in history.

    Attributes:
        message: why.
        author: "Name <address>".
        metadata: JSON types.
        metrics: {name: number}.
        provenance: how the tree was derived, or None.
    """

    message: str
    author: str
    metadata: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None

    @classmethod
    def checked(
        cls,
        message: str,
        author: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> "Details":
        """What a user said, as a commit can record it; the author is this user by default.

        Raises:
            VcjaxError: something that JSON cannot hold, a metric that is no number, or a
                message that is no text.
        """
        for name, text in (("message", message), ("author", author or "")):
            if not isinstance(text, str):
                raise VcjaxError(
                    f"the {name} is of type {type(text).__name__}, and not text",
                    hint="the tree comes first: `repo.commit(tree, message)`",
                    shell_hint="write text",
                )
        return cls(
            message,
            author or default_author(),
            checked_metadata(dict(metadata or {})),
            checked_metrics(metrics),
            checked_metadata(provenance, "provenance"),
        )


@dataclass(frozen=True)
class Change:
    """What is to be committed.

    Attributes:
        manifest: the tree, with all leaves stored.
        details: what the commit says of it.
        rebase: whether what only others have changed meanwhile is taken over.
        extra_parents: further parents, for merges.
        staged_on: the commit, then the tip of the branch, whose leaves the manifest
            counts on being there.
        reason: the word in the log of the ref.
    """

    manifest: Manifest
    details: Details
    rebase: bool = True
    extra_parents: tuple[str, ...] = ()
    staged_on: str | None = None
    reason: str = "commit"


def default_author() -> str:
    """ "user <user@host>" of this process."""
    import getpass  # 0.003 s

    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user in this container; no `pwd`
        user = "unknown"
    return f"{user} <{user}@{socket.gethostname()}>"
