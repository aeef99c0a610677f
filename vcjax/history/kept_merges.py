"""Merges under way: what was asked of one that has conflicts, until it is finished or dropped."""

from vcjax.errors import MergeError, listing
from vcjax.history.merge_request import MergeRequest
from vcjax.history.refnames import HEAD
from vcjax.storage import Store

PREFIX = "merges/"


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
        return [key[len(PREFIX) :] for key in self._store.keys(PREFIX)]

    def all(self) -> list[MergeRequest]:
        """All of them; raises as `get` does."""
        keys = self._store.keys(PREFIX)
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
            where = "" if target == HEAD else f" --branch={request.short}"
            raise MergeError(
                f"a merge of {listing(request.names[1:])} into {request.short!r} is under way",
                hint=f"go on with `vcjax merge --continue{where}` (`repo.merges.resume()`), or "
                f"drop it with `vcjax merge --abort{where}` (`repo.merges.abort()`)",
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
                hint="`vcjax status` shows what is left; go on from there",
            )

    def drop(self, target: str) -> bool:
        """Forgets a merge, finished or not, damaged or not; whether there was one."""
        key = PREFIX + target
        seen = self._store.read_versioned(key)
        return seen.value is not None and self._store.compare_and_set(key, None, seen)

    def _is(self, request: MergeRequest) -> bool:
        """Whether a request is there although writing it seemed to fail."""
        return self._store.read(PREFIX + request.target) == request.encode()
