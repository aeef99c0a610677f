"""Merges under way: what was decided of one that has conflicts, until it is finished or dropped."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vcjax.errors import CorruptionError, MergeError, listing
from vcjax.history import canonical
from vcjax.history.refnames import HEAD, HEADS
from vcjax.storage import Store

PREFIX = "merges/"

_HINT = "`vcjax merge --abort` drops it; the branch is where it was"


@dataclass(frozen=True)
class MergeState:
    """A merge that has conflicts left. Nothing has moved yet.

    Attributes:
        target: full name of the ref that the merge moves; "HEAD" if that is on no branch.
        ours: digest of the commit that it was at.
        theirs: digests of the other sides.
        names: of all sides as the user wrote them, ours first.
        rules: (leaf path glob, side) in the order in which they count. A side is "ours",
            "theirs" or the name of one, "base", or "method".
        method: {"name": …, "parameters": …}, for conflicts that no rule settles.
        weights: for the method, as a commit records them.
        key: likewise.
        message: of the commit; None for the usual one.
        author: who began it.
        metadata: of the commit.
        metrics: of the commit.
        started: seconds since 1970 UTC.
    """

    target: str
    ours: str
    theirs: tuple[str, ...]
    names: tuple[str, ...]
    rules: tuple[tuple[str, str], ...] = ()
    method: Mapping[str, Any] | None = None
    weights: Any = None
    key: Any = None
    message: str | None = None
    author: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @property
    def short(self) -> str:
        """The name of the branch, or "HEAD"."""
        return self.target.removeprefix(HEADS)

    @property
    def commits(self) -> tuple[str, ...]:
        """Digests of all sides, ours first."""
        return (self.ours, *self.theirs)

    def encode(self) -> bytes:
        """The record that is stored."""
        return canonical.encode_record(asdict(self))

    @classmethod
    def decode(cls, key: str, data: bytes) -> "MergeState":
        """The state in a stored record.

        Raises:
            CorruptionError: the record is damaged.
        """
        body = canonical.decode_record(key, data, _HINT)
        try:
            return cls(
                **{
                    **{name: body[name] for name in cls.__dataclass_fields__},
                    "theirs": tuple(body["theirs"]),
                    "names": tuple(body["names"]),
                    "rules": tuple((glob, side) for glob, side in body["rules"]),
                }
            )
        except (LookupError, TypeError, ValueError) as error:
            raise CorruptionError(f"{key} is no state of a merge", hint=_HINT) from error


class MergeStates:
    """The merges under way in a repository: at the most one for each branch."""

    def __init__(self, store: Store):
        self._store = store

    def get(self, target: str) -> MergeState | None:
        """The merge under way into a ref, if there is one.

        Raises:
            CorruptionError: its record is damaged.
        """
        data = self._store.read(PREFIX + target)
        return None if data is None else MergeState.decode(PREFIX + target, data)

    def targets(self) -> list[str]:
        """Full names of the refs that merges are under way into."""
        return [key[len(PREFIX) :] for key in self._store.keys(PREFIX)]

    def all(self) -> list[MergeState]:
        """All of them; raises as `get` does."""
        keys = self._store.keys(PREFIX)
        found = zip(keys, self._store.read_many(keys) if keys else [], strict=True)
        return [MergeState.decode(key, data) for key, data in found if data is not None]

    def commits(self) -> frozenset[str]:
        """Digests of the commits that merges under way are of; raises as `get` does."""
        return frozenset(digest for state in self.all() for digest in state.commits)

    def refuse(self, target: str) -> None:
        """Raises if a merge into a ref is under way.

        Raises:
            MergeError: naming it.
        """
        state = self.get(target)
        if state is not None:
            where = "" if target == HEAD else f" --branch={state.short}"
            raise MergeError(
                f"a merge of {listing(state.names[1:])} into {state.short!r} is under way",
                hint=f"go on with `vcjax merge --continue{where}` (`continue_merge()`), or drop "
                f"it with `vcjax merge --abort{where}` (`abort_merge()`)",
            )

    def start(self, state: MergeState) -> None:
        """Takes down a merge that has begun.

        Raises:
            MergeError: somebody else has begun one into the same ref.
        """
        key = PREFIX + state.target
        seen = self._store.read_versioned(key)
        if seen.value is not None or not self._store.compare_and_set(key, state.encode(), seen):
            if self._is(state):
                return
            self.refuse(state.target)
            raise MergeError(f"another merge into {state.short!r} began", hint="merge again")

    def replace(self, old: MergeState, new: MergeState) -> None:
        """Takes down what was decided since.

        Raises:
            MergeError: somebody else has gone on with the merge meanwhile.
        """
        key = PREFIX + old.target
        seen = self._store.read_versioned(key)
        if seen.value != old.encode() or not self._store.compare_and_set(key, new.encode(), seen):
            if self._is(new):
                return
            raise MergeError(
                f"the merge into {old.short!r} was changed by somebody else meanwhile",
                hint="`vcjax status` shows what is left; go on from there",
            )

    def drop(self, target: str) -> bool:
        """Forgets a merge, finished or not, damaged or not; whether there was one."""
        key = PREFIX + target
        seen = self._store.read_versioned(key)
        return seen.value is not None and self._store.compare_and_set(key, None, seen)

    def _is(self, state: MergeState) -> bool:
        """Whether a state is there although writing it seemed to fail."""
        return self._store.read(PREFIX + state.target) == state.encode()
