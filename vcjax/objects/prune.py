"""Pruning: the data of some commits is let go, while the commits stay."""

import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from vcjax.history import History, KeptMerges, Prunings, Refs, canonical
from vcjax.history.keys import logged_name
from vcjax.objects.gc import REFLOG_SECONDS, GcPlan, delete_object
from vcjax.objects.layout import GRACE_SECONDS
from vcjax.objects.liveness import RefStates, ancestors, commits_of, objects_of, present
from vcjax.objects.store import ObjectStore


@dataclass(frozen=True)
class PruneReport:
    """What pruning did.

    Attributes:
        commits: digests of the commits that have let their data go.
        spared: digests of those that keep their data, since a ref points to them.
        collected: what was deleted: the objects that only pruned commits used.
    """

    commits: tuple[str, ...]
    spared: tuple[str, ...]
    collected: GcPlan


class Pruner:
    """Lets the data of commits go, at a cost that does not grow with their number.

    It remembers which commits it has found refs and their logs to lead to, and how
    many of the unpruned ones use each object. Every call looks only at what is new:
    states of refs, commits, notes of prunings. What has become unreachable since
    is taken to be alive still; it is for `plan_gc` to find.
    """

    def __init__(self, refs: Refs, history: History, prunings: Prunings, objects: ObjectStore):
        self._refs, self._history = refs, history
        self._merges = KeptMerges(objects.store)
        self._prunings, self._objects = prunings, objects
        self._lock = threading.Lock()
        self._states: set[str] = set()  # keys of the log that were read
        self._live: set[str] = set()  # commits, pruned ones included
        self._uses: dict[str, tuple[str, ...]] = {}  # unpruned live commit -> its objects
        self._users: Counter[str] = Counter()  # object -> how many of `_uses` have it
        self._needs: dict[str, tuple[str, ...]] = {}  # object in `_users` -> what it stands on
        self._pruned: set[str] = set()  # commits: those found at the last listing, and our own
        self._marked = 0  # how many of them were not there then

    def prune(self, commits: Iterable[str], policy: str) -> PruneReport:
        """Deletes the data that only pruned commits use, whatever its age.

        Spared are commits that a ref points to or a merge under way is of, and data that
        a writer has relied upon within `GRACE_SECONDS`: its commit may be in progress.

        Args:
            commits: digests of the commits to prune.
            policy: why, in words.

        Raises:
            CorruptionError: something live cannot be read; nothing is deleted then.
        """
        with self._lock:
            digests = tuple(dict.fromkeys(commits))
            tips = commits_of(present(self._refs)) | self._merges.commits()
            pruned = tuple(digest for digest in digests if digest not in tips)
            spared = tuple(digest for digest in digests if digest in tips)
            is_said = not pruned or self._prunings.mark(pruned, policy)
            self._marked += len(pruned)
            collected = self._collect(pruned)
            if not is_said:  # the disk was full; there is space for it now
                self._prunings.mark(pruned, policy)
            return PruneReport(pruned, spared, collected)

    def _collect(self, pruned: Iterable[str]) -> GcPlan:
        candidates: set[str] = set()
        for digest in pruned:
            candidates.update(self._uses.get(digest) or self._read(digest, {}))
        self._pruned.update(pruned)
        seen = self._look(candidates)
        now = self._objects.store.now()
        oldest = now - GRACE_SECONDS
        keys = sorted(key for key in candidates if key not in self._users)
        free, nbytes = [], 0
        for key, header in zip(keys, self._objects.read_headers(keys), strict=True):
            if header is not None and (header.relied or 0.0) < oldest:
                free.append(key)
                parts = self._objects.store.keys(f"{key}/", links=False)
                nbytes += sum(map(self._objects.store.size, parts))
        if free and present(self._refs) != seen:
            self._look(set())  # what came to be referenced meanwhile is spared
        for key in free:
            if key not in self._users:
                delete_object(self._objects, key, relied_before=oldest)
        spared = len(keys) - len(free)
        return GcPlan((), (), tuple(free), nbytes, spared, REFLOG_SECONDS, (), now)

    def _look(self, freed: set[str]) -> RefStates:
        """Takes note of what has changed in the repository; the present states of refs.

        Refs are read before their logs: a state is logged before it is replaced, so
        one of the two has it. An object in `_users` is never deleted, so what it
        stands on stays the same; one that lost its last user may have been stored anew, which
        is why users are dropped before others are added.

        Args:
            freed: is added to: what lost its last user, as others have pruned that.
        """
        seen = present(self._refs)
        states = self._new_states()
        tips = commits_of(seen).union(filter(None, states.values()), self._merges.commits())
        new = ancestors(self._history, tips, self._live).keys()
        self._live.update(new)
        # The note of a deletion gives way to a state if the deletion was not carried through.
        self._states.update(key for key, commit in states.items() if commit)
        gone, added = self._pruned & self._uses.keys(), new - self._pruned
        if self._must_list():
            kept = self._live - self._pruned
            gone, added = self._uses.keys() - kept, kept - self._uses.keys()
        for digest in gone:
            for key in self._uses.pop(digest):
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]
                    self._needs.pop(key, None)
                    freed.add(key)
        for digest in added:
            self._uses[digest] = self._read(digest, self._needs)
            self._users.update(self._uses[digest])
        return seen

    def _must_list(self) -> bool:
        """Lists what anybody has pruned, if that was not done for long.

        To list it each time would cost more, the more commits there are; what others
        have pruned may be taken to be in use until then. It is listed again after
        an eighth as many prunings as it holds.
        """
        if self._marked and 8 * self._marked <= len(self._pruned):
            return False
        self._pruned, self._marked = set(self._prunings.all()), 0
        return True

    def _new_states(self) -> dict[str, str]:
        """{key in the log: commit} of the states of refs that were logged since the last time."""
        store = self._objects.store
        keys = list(filter(logged_name, store.keys("log/", without=self._states)))
        hint = "run `vcjax fsck`"
        return {
            key: canonical.decode_record(key, value, hint)["commit"]
            for key, value in zip(keys, store.read_many(keys), strict=True)
            if value is not None
        }

    def _read(self, digest: str, needs: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The objects that a commit uses; as interned strings, since most have many users."""
        manifest = self._history.commit(digest).manifest
        used = objects_of(self._history, self._objects, [manifest], needs)
        return tuple(map(sys.intern, used))
