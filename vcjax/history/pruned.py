"""Pruned commits: a retention policy let their data go; commit and manifest stay."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vcjax.errors import PrunedError, StorageError
from vcjax.history import canonical
from vcjax.history.commit import Commit
from vcjax.history.keys import is_digest
from vcjax.storage import Store

PREFIX = "pruned/"


@dataclass(frozen=True)
class Pruning:
    """Why and when the data of a commit were let go.

    Attributes:
        policy: which policy, in words.
        time: seconds since 1970 UTC; None if the disk was too full to say.
    """

    policy: str
    time: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"policy": self.policy, "time": self.time}

    def __str__(self) -> str:
        if self.time is None:
            return f"pruned by {self.policy}"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.time))
        return f"pruned on {when} UTC by {self.policy}"


class Prunings:
    """Which commits of a repository are pruned."""

    def __init__(self, store: Store):
        self._store = store

    def mark(self, commits: Iterable[str], policy: str) -> bool:
        """Lets the data of some commits go.

        Returns:
            False if the disk is too full to say why: call it again when space was freed.
        """
        body = canonical.encode_record({"policy": policy, "time": time.time()})
        keys = [PREFIX + digest for digest in commits]
        try:
            self._store.write_many((key, body) for key in keys)
        except StorageError:
            # An empty file takes no space. Where that cannot be written either, it says why.
            self._store.write_many((key, b"") for key in keys)
            return False
        finally:
            self._store.sync()
        return True

    def get(self, commit: str) -> Pruning | None:
        """Why a commit was pruned; None if it was not.

        Raises:
            CorruptionError: the note is damaged.
        """
        data = self._store.read(PREFIX + commit)
        if data is None:
            return None
        if not data:
            return Pruning("a policy that the full disk had no space to name", None)
        hint = "delete it if the data of the commit are wanted, or prune the commit again"
        body = canonical.decode_record(PREFIX + commit, data, hint)
        rules = {"policy": canonical.is_text, "time": canonical.is_time}
        canonical.check_members(PREFIX + commit, body, rules, hint)
        return Pruning(body["policy"], body["time"])

    def among(self, commits: Iterable[str]) -> dict[str, Pruning]:
        """Why the pruned ones of some commits were pruned, by digest."""
        pruned = self.all()
        found = {digest: self.get(digest) for digest in commits if digest in pruned}
        return {digest: pruning for digest, pruning in found.items() if pruning is not None}

    def reasons(self, commits: Sequence[Commit]) -> tuple[str, ...]:
        """Which of some commits have no data any more, and why: a line for each."""
        found = self.among(commit.digest for commit in commits)
        return tuple(
            f"{_named(commit)} has no data any more: {found[commit.digest]}"
            for commit in commits
            if commit.digest in found
        )

    def require(self, commit: Commit) -> None:
        """Raises if the data of a commit were let go.

        Raises:
            PrunedError: says when, and by which policy.
        """
        for reason in self.reasons([commit]):
            raise PrunedError(
                reason,
                hint="its manifest, metrics and message are kept: `repo.manifest` has the first",
                shell_hint="its manifest, metrics and message are kept: `vcjax show`, `vcjax ls`",
            )

    def all(self) -> frozenset[str]:
        """Digests of all pruned commits."""
        digests = (key[len(PREFIX) :] for key in self._store.keys(PREFIX))
        return frozenset(filter(is_digest, digests))


def _named(commit: Commit) -> str:
    """A commit in a message, by its step where it has one."""
    name = f"commit {commit.digest[:8]}"
    return name if commit.step is None else f"step {commit.step} ({name})"
