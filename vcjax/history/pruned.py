"""Pruned commits: a retention policy let their data go; commit and manifest stay."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from vcjax.history import canonical
from vcjax.storage import Store

PREFIX = "pruned/"


@dataclass(frozen=True)
class Pruning:
    """Why and when the data of a commit were let go.

    Attributes:
        policy: which policy, in words.
        time: seconds since 1970 UTC.
    """

    policy: str
    time: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.time))
        return f"pruned on {when} UTC by {self.policy}"


class Prunings:
    """Which commits of a repository are pruned."""

    def __init__(self, store: Store):
        self._store = store

    def mark(self, commits: Iterable[str], policy: str) -> None:
        """Lets the data of some commits go."""
        body = canonical.encode_record({"policy": policy, "time": time.time()})
        self._store.write_many((PREFIX + digest, body) for digest in commits)
        self._store.sync()

    def get(self, commit: str) -> Pruning | None:
        """Why a commit was pruned; None if it was not.

        Raises:
            CorruptionError: the note is damaged.
        """
        data = self._store.read(PREFIX + commit)
        if data is None:
            return None
        hint = "delete it if the data of the commit are wanted, or prune the commit again"
        body = canonical.decode_record(PREFIX + commit, data, hint)
        rules = {"policy": canonical.is_text, "time": canonical.is_time}
        canonical.check_members(PREFIX + commit, body, rules, hint)
        return Pruning(body["policy"], body["time"])

    def all(self) -> frozenset[str]:
        """Digests of all pruned commits."""
        return frozenset(key[len(PREFIX) :] for key in self._store.keys(PREFIX))
