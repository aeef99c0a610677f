"""`MergeRequest`: what a merge by history was asked for, and those of merges under way."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vcjax.errors import CorruptionError, MergeError, listing
from vcjax.history import canonical
from vcjax.history.keys import is_ours
from vcjax.history.refnames import HEAD, HEADS
from vcjax.storage import Store

PREFIX = "merges/"

HINT = "`vcjax merge --abort` drops it; the branch is where it was"


@dataclass(frozen=True)
class MergeRequest:
    """Everything that decides what a merge by history comes to, as plain data.

    One type is asked, kept while conflicts are left, recorded, and replayed.

    Attributes:
        target: full name of the ref that the merge moves; "HEAD" if that is on no branch.
        ours: digest of the commit that it was at.
        theirs: digests of the other sides.
        names: of all sides as the user wrote them, ours first.
        rules: (leaf path glob, side) in the order in which they count. A side is "ours",
            "theirs" or the name of one, "base", or "method".
        method: {"name": …, "parameters": …}, for conflicts that no rule settles.
        weights: for the method: numbers, one per side, or [glob, numbers] pairs.
        key: for the method: an int, or the words of a PRNG key with its kind.
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

    def among(self, kept: Sequence[int]) -> "MergeRequest":
        """The same of some of the sides, ours among them, by their places."""
        if len(kept) == len(self.commits):
            return self
        return replace(
            self,
            theirs=tuple(self.commits[at] for at in kept[1:]),
            names=tuple(self.names[at] for at in kept),
            weights=_weights_among(self.weights, kept, len(self.commits)),
        )

    def encode(self) -> bytes:
        """The record that is stored."""
        return canonical.encode_record(asdict(self))

    @classmethod
    def decode(cls, key: str, data: bytes) -> "MergeRequest":
        """The request in a stored record.

        Raises:
            CorruptionError: the record is damaged.
        """
        body = canonical.decode_record(key, data, HINT)
        canonical.check_members(key, body, _RULES, HINT)
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
            raise CorruptionError(f"{key} is no state of a merge", hint=HINT) from error

    def provenance(self) -> dict[str, Any]:
        """What the commit records of it; with `of_provenance` it can be asked again."""
        return {
            "operation": "merge",
            "inputs": list(self.commits),
            "names": list(self.names),
            "rules": [list(rule) for rule in self.rules],
            "method": self.method,
            "weights": self.weights,
            "key": self.key,
        }

    @classmethod
    def of_provenance(cls, provenance: Mapping[str, Any]) -> "MergeRequest":
        """The request that a merge commit says it answered; it moves `HEAD`, if anything.

        Raises:
            KeyError: the commit does not record it.
        """
        ours, *theirs = provenance["inputs"]
        return cls(
            target=HEAD,
            ours=ours,
            theirs=tuple(theirs),
            names=tuple(provenance["names"]),
            rules=tuple((glob, side) for glob, side in provenance["rules"]),
            method=provenance["method"],
            weights=provenance["weights"],
            key=provenance["key"],
        )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(canonical.is_text, value))


def _are_digests(value: object) -> bool:
    return isinstance(value, list) and all(map(canonical.is_digest, value))


def _is_method(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


_RULES: dict[str, Callable[[Any], bool]] = {
    "target": canonical.is_text,
    "ours": canonical.is_digest,
    "theirs": _are_digests,
    "names": _are_texts,
    "rules": lambda value: (
        isinstance(value, list) and all(_are_texts(rule) and len(rule) == 2 for rule in value)
    ),
    "method": lambda value: value is None or _is_method(value),
    "message": lambda value: isinstance(value, str | None),
    "author": canonical.is_text,
    "metadata": lambda value: isinstance(value, dict),
    "metrics": lambda value: (
        isinstance(value, dict) and all(map(canonical.is_number, value.values()))
    ),
    "started": canonical.is_time,
}


def _weights_among(weights: Any, kept: Sequence[int], count: int) -> Any:
    """The weights of some of the sides, if there are as many as sides."""
    if not isinstance(weights, list):
        return weights
    if any(isinstance(pair, list) for pair in weights):
        return [[glob, _weights_among(numbers, kept, count)] for glob, numbers in weights]
    return [weights[at] for at in kept] if len(weights) == count else weights


class KeptMerges:
    """The merges under way in a repository: at the most one for each branch."""

    def __init__(self, store: Store):
        self._store = store

    def get(self, target: str) -> MergeRequest | None:
        """The merge under way into a ref, if there is one.

        Raises:
            CorruptionError: its record is damaged.
        """
        data = self._store.read(PREFIX + target)
        return None if data is None else MergeRequest.decode(PREFIX + target, data)

    def targets(self) -> list[str]:
        """Full names of the refs that merges are under way into."""
        return [key[len(PREFIX) :] for key in self._store.keys(PREFIX) if is_ours(key)]

    def all(self) -> list[MergeRequest]:
        """All of them; raises as `get` does."""
        keys = [key for key in self._store.keys(PREFIX) if is_ours(key)]
        found = zip(keys, self._store.read_many(keys) if keys else [], strict=True)
        return [MergeRequest.decode(key, data) for key, data in found if data is not None]

    def commits(self) -> frozenset[str]:
        """Digests of the commits that merges under way are of; raises as `get` does."""
        return frozenset(digest for request in self.all() for digest in request.commits)

    def refuse(self, target: str) -> None:
        """Raises if a merge into a ref is under way.

        Raises:
            MergeError: naming it.
        """
        request = self.get(target)
        if request is not None:
            branch = "" if target == HEAD else f"branch={request.short!r}"
            where = "" if target == HEAD else f" --branch={request.short}"
            raise MergeError(
                f"a merge of {listing(request.names[1:])} into {request.short!r} is under way",
                hint=f"go on with `repo.merges.resume({branch})`, or drop it with "
                f"`repo.merges.abort({branch})`",
                shell_hint=f"go on with `vcjax merge --continue{where}`, or drop it with "
                f"`vcjax merge --abort{where}`",
            )

    def start(self, request: MergeRequest) -> None:
        """Takes down a merge that has begun.

        Raises:
            MergeError: somebody else has begun one into the same ref.
        """
        key = PREFIX + request.target
        seen = self._store.read_versioned(key)
        if seen.value is not None or not self._store.compare_and_set(key, request.encode(), seen):
            if self._is(request):
                return
            self.refuse(request.target)
            raise MergeError(f"another merge into {request.short!r} began", hint="merge again")

    def replace(self, old: MergeRequest, new: MergeRequest) -> None:
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
                hint="`repo.merges.get()` shows what is left; go on from there",
                shell_hint="`vcjax status` shows what is left; go on from there",
            )

    def drop(self, target: str) -> bool:
        """Forgets a merge, finished or not, damaged or not; whether there was one."""
        key = PREFIX + target
        seen = self._store.read_versioned(key)
        return seen.value is not None and self._store.compare_and_set(key, None, seen)

    def _is(self, request: MergeRequest) -> bool:
        """Whether a request is there although writing it seemed to fail."""
        return self._store.read(PREFIX + request.target) == request.encode()
