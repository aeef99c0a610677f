"""Collecting garbage: mark what refs and their logs lead to, sweep the rest when it is old."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from vcjax.history import Commit, Head, History, Prunings, Ref, Refs, canonical
from vcjax.history.commit import commit_key
from vcjax.history.manifest import manifest_key
from vcjax.objects.arrays import ArrayHeader
from vcjax.objects.layout import GRACE_SECONDS, leaf_key, pack_key
from vcjax.objects.store import ObjectStore

REFLOG_SECONDS = 90 * 24 * 3600.0
"""How long a former state of a ref keeps its commits alive."""


@dataclass(frozen=True)
class GcPlan:
    """What a collection would delete.

    Attributes:
        commits: digests of unreachable commits.
        manifests: digests of manifests that no live commit uses.
        objects: keys of the leaf objects and packs that no live manifest uses.
        nbytes: stored size of those objects in bytes, as far as the store tells.
        spared: how many unreferenced objects are younger than the grace window.
        reflog: how long, in seconds, former states of refs count.
        leftovers: temporary files of writers that were killed.
        made: when the plan was made, seconds since 1970 UTC.
    """

    commits: tuple[str, ...]
    manifests: tuple[str, ...]
    objects: tuple[str, ...]
    nbytes: int
    spared: int
    reflog: float
    leftovers: tuple[str, ...] = ()
    made: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for `--json`."""
        return {
            "commits": list(self.commits),
            "manifests": list(self.manifests),
            "objects": list(self.objects),
            "nbytes": self.nbytes,
            "spared": self.spared,
            "leftovers": list(self.leftovers),
        }


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


_RefStates = dict[str, Ref | Head]


def _present(refs: Refs) -> _RefStates:
    """The states of all refs and of `HEAD`, by full name."""
    return {**refs.under("refs/"), **refs.under("aliases/"), "HEAD": refs.head()}


def _commits_of(states: _RefStates) -> set[str]:
    """The commits that refs point to."""
    return {state.commit for state in states.values() if state.commit}


def _tips(refs: Refs, reflog_seconds: float) -> frozenset[str]:
    """Commits that refs point to, or pointed to within the age of the log."""
    tips = _commits_of(_present(refs))
    for name in refs.logged_names():
        tips |= refs.former(name, time.time() - reflog_seconds)
    return frozenset(tips)


@dataclass(frozen=True)
class _Live:
    """What some commits lead to."""

    commits: frozenset[str]
    manifests: frozenset[str]
    objects: frozenset[str]


def _live(
    history: History, objects: ObjectStore, tips: Iterable[str], pruned: frozenset[str]
) -> _Live:
    commits = _ancestors(history, tips)
    manifests = {commit.manifest for commit in commits.values()}
    kept = {commit.manifest for digest, commit in commits.items() if digest not in pruned}
    used = _objects_of(history, objects, kept)
    return _Live(frozenset(commits), frozenset(manifests), frozenset(used))


def _ancestors(
    history: History, tips: Iterable[str], known: frozenset[str] | set[str] = frozenset()
) -> dict[str, Commit]:
    """{digest: commit} of some commits and all their ancestors, without those below `known`."""
    commits: dict[str, Commit] = {}
    queue = list(tips)
    while queue:
        digest = queue.pop()
        if digest not in commits and digest not in known:
            commits[digest] = history.commit(digest)
            queue.extend(commits[digest].parents)
    return commits


def _objects_of(
    history: History,
    objects: ObjectStore,
    manifests: Iterable[str],
    known: dict[str, str | None] | None = None,
) -> set[str]:
    """Keys of the leaf objects and packs that manifests refer to, and of their bases.

    Args:
        known: as for `_bases_of`.
    """
    used: set[str] = set()
    chunked: set[str] = set()
    for manifest in manifests:
        for entry in history.manifest(manifest).leaves.values():
            if entry.packed is not None:
                used.add(pack_key(entry.packed.pack))
            elif entry.is_object:
                used.add(leaf_key(entry.digest))
                if entry.chunks:  # only these may stand on a base
                    chunked.add(leaf_key(entry.digest))
    return used | _bases_of(objects, chunked, known)


def _bases_of(
    objects: ObjectStore, keys: Iterable[str], known: dict[str, str | None] | None = None
) -> set[str]:
    """Keys of all leaf objects that some stand on, directly or not.

    Args:
        known: {key: key of its base} of headers that need not be read; those that
            are read are added.
    """
    known = {} if known is None else known
    found: set[str] = set()
    queue = sorted(keys)
    while queue:
        unread = [key for key in queue if key not in known]
        for key, header in zip(unread, objects.read_headers(unread), strict=True):
            if header is not None:
                known[key] = leaf_key(header.base) if header.base else None
        bases = {base for key in queue if (base := known.get(key))}
        queue = sorted(bases - found)
        found |= bases
    return found


def plan_gc(
    refs: Refs,
    history: History,
    prunings: Prunings,
    objects: ObjectStore,
    grace: float = GRACE_SECONDS,
    reflog: float = REFLOG_SECONDS,
) -> GcPlan:
    """Finds what nothing leads to and is older than `grace` seconds.

    Args:
        reflog: how long, in seconds, a former state of a ref keeps its commits alive.

    Raises:
        CorruptionError: something live cannot be read. Nothing is collected from
            a damaged repository, since what looks dead may not be.
    """
    now = time.time()
    tips = _tips(refs, reflog)
    pruned = prunings.all()
    referenced = _live(history, objects, tips, pruned)
    loose = [digest for digest in history.all_commits() if digest not in referenced.commits]
    dead = [digest for digest in loose if now - history.commit(digest).time.timestamp() >= grace]
    # A commit in progress is young: all that it leads to is spared with it.
    live = _live(history, objects, tips | (set(loose) - set(dead)), pruned)
    dead = [digest for digest in dead if digest not in live.commits]
    manifests = [
        digest
        for digest in history.all_manifests()
        if digest not in live.manifests and _age(objects, manifest_key(digest), now) >= grace
    ]
    keys, nbytes, spared = _dead_objects(objects, live.objects, now, grace)
    leftovers = [
        key
        for folder in ("leaves", "packs", "manifests", "commits")
        for key in objects.store.leftovers(folder)
        if _age(objects, key, now) >= grace
    ]
    nbytes += sum(objects.store.size(key) for key in leftovers)
    return GcPlan(
        tuple(dead), tuple(manifests), tuple(keys), nbytes, spared, reflog, tuple(leftovers), now
    )


def _age(objects: ObjectStore, key: str, now: float) -> float:
    modified = objects.store.modified(key)
    return now - modified if modified is not None else 0.0


def _dead_objects(
    objects: ObjectStore, used: frozenset[str], now: float, grace: float
) -> tuple[list[str], int, int]:
    """(keys of the dead objects, their stored bytes, number of young ones)."""
    parts: dict[str, list[str]] = {}
    for key in [*objects.store.keys("leaves/"), *objects.store.keys("packs/")]:
        parts.setdefault("/".join(key.split("/")[:3]), []).append(key)
    dead, young = [], []
    for key in parts.keys() - used:
        value = objects.store.read(f"{key}/zarr.json")
        if value is None:  # its writer died, or is at work, before the header
            age = min(_age(objects, part, now) for part in parts[key])
        else:
            age = now - ArrayHeader.decode(key, value).used
        (dead if age >= grace else young).append(key)
    needed = _bases_of(objects, young)
    dead = sorted(key for key in dead if key not in needed)
    nbytes = sum(objects.store.size(part) for key in dead for part in parts[key])
    return dead, nbytes, len(parts) - len(used & parts.keys()) - len(dead)


class Pruner:
    """Lets the data of commits go, at a cost that does not grow with their number.

    It remembers which commits it has found refs and their logs to lead to, and how
    many of the unpruned ones use each object. Every call looks only at what is new:
    states of refs, commits, notes of prunings. What has become unreachable since
    is taken to be alive still; it is for `plan_gc` to find.
    """

    def __init__(self, refs: Refs, history: History, prunings: Prunings, objects: ObjectStore):
        self._refs, self._history = refs, history
        self._prunings, self._objects = prunings, objects
        self._lock = threading.Lock()
        self._states: set[str] = set()  # keys of the log that were read
        self._live: set[str] = set()  # commits, pruned ones included
        self._uses: dict[str, tuple[str, ...]] = {}  # unpruned live commit -> its objects
        self._users: Counter[str] = Counter()  # object -> how many of `_uses` have it
        self._bases: dict[str, str | None] = {}  # chunked object in `_users` -> its base
        self._pruned: set[str] = set()  # commits: those found at the last listing, and our own
        self._marked = 0  # how many of them were not there then

    def prune(self, commits: Iterable[str], policy: str) -> PruneReport:
        """Deletes the data that only pruned commits use, whatever its age.

        Spared are commits that a ref points to, and data that a writer has relied
        upon within `GRACE_SECONDS`: its commit may be in progress.

        Args:
            commits: digests of the commits to prune.
            policy: why, in words.

        Raises:
            CorruptionError: something live cannot be read; nothing is deleted then.
        """
        with self._lock:
            digests = tuple(dict.fromkeys(commits))
            tips = _commits_of(_present(self._refs))
            pruned = tuple(digest for digest in digests if digest not in tips)
            spared = tuple(digest for digest in digests if digest in tips)
            if pruned:
                self._prunings.mark(pruned, policy)
                self._marked += len(pruned)
            return PruneReport(pruned, spared, self._collect(pruned))

    def _collect(self, pruned: Iterable[str]) -> GcPlan:
        candidates: set[str] = set()
        for digest in pruned:
            candidates.update(self._uses.get(digest) or self._read(digest, {}))
        self._pruned.update(pruned)
        seen = self._look(candidates)
        now = time.time()
        oldest = now - GRACE_SECONDS
        keys = sorted(key for key in candidates if key not in self._users)
        free, nbytes = [], 0
        for key, header in zip(keys, self._objects.read_headers(keys), strict=True):
            if header is not None and (header.relied or 0.0) < oldest:
                free.append(key)
                nbytes += sum(map(self._objects.store.size, self._objects.store.keys(f"{key}/")))
        if free and _present(self._refs) != seen:
            self._look(set())  # what came to be referenced meanwhile is spared
        for key in free:
            if key not in self._users:
                _delete_object(self._objects, key, relied_before=oldest)
        spared = len(keys) - len(free)
        return GcPlan((), (), tuple(free), nbytes, spared, REFLOG_SECONDS, (), now)

    def _look(self, freed: set[str]) -> _RefStates:
        """Takes note of what has changed in the repository; the present states of refs.

        Refs are read before their logs: a state is logged before it is replaced, so
        one of the two has it. An object in `_users` is never deleted, so its base
        stays the same; one that lost its last user may have been stored anew, which
        is why users are dropped before others are added.

        Args:
            freed: is added to: what lost its last user, as others have pruned that.
        """
        present = _present(self._refs)
        states = self._new_states()
        tips = _commits_of(present).union(filter(None, states.values()))
        new = _ancestors(self._history, tips, self._live).keys()
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
                    self._bases.pop(key, None)
                    freed.add(key)
        for digest in added:
            self._uses[digest] = self._read(digest, self._bases)
            self._users.update(self._uses[digest])
        return present

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
        keys = store.keys("log/", without=self._states)
        hint = "run `vcjax fsck`"
        return {
            key: canonical.decode_record(key, value, hint)["commit"]
            for key, value in zip(keys, store.read_many(keys), strict=True)
            if value is not None
        }

    def _read(self, digest: str, bases: dict[str, str | None]) -> tuple[str, ...]:
        """The objects that a commit uses; as interned strings, since most have many users."""
        manifest = self._history.commit(digest).manifest
        used = _objects_of(self._history, self._objects, [manifest], bases)
        return tuple(map(sys.intern, used))


def sweep(
    plan: GcPlan, refs: Refs, history: History, prunings: Prunings, objects: ObjectStore
) -> None:
    """Deletes what a plan lists.

    Each object is first marked as being deleted by compare-and-set of its
    header: a writer that relies on it meanwhile either renews the header first,
    and it is spared, or sees the mark and stores the leaf anew.

    What came to be referenced since the plan was made is spared.
    """
    live = _live(history, objects, _tips(refs, plan.reflog), prunings.all())
    for name in refs.logged_names():
        refs.forget(name, time.time() - plan.reflog)
    objects.store.delete(
        commit_key(digest) for digest in plan.commits if digest not in live.commits
    )
    objects.store.delete(
        manifest_key(digest) for digest in plan.manifests if digest not in live.manifests
    )
    if plan.commits or plan.manifests:
        history.forget()
    objects.store.remove_leftovers(plan.leftovers)
    for key in plan.objects:
        if key not in live.objects:
            _delete_object(objects, key, relied_before=plan.made)
    for folder in {"/".join(key.split("/")[:-1]) for key in plan.leftovers}:
        objects.store.remove_empty_folders(folder)


def _delete_object(objects: ObjectStore, key: str, relied_before: float) -> None:
    """Deletes an object, unless a writer has relied on it since `relied_before`."""
    store = objects.store
    header_key = f"{key}/zarr.json"
    versioned = store.read_versioned(header_key)
    if versioned.value is not None:
        header = ArrayHeader.decode(key, versioned.value)
        if (header.relied or 0.0) >= relied_before:
            return
        marked = replace(header, deleting=True, written=time.time()).encode()
        if not store.compare_and_set(header_key, marked, versioned):
            return
    store.delete(part for part in store.keys(f"{key}/") if part != header_key)
    store.delete([header_key])
    store.remove_empty_folders(key)
