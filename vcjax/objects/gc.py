"""Collecting garbage: mark what refs and their logs lead to, sweep the rest when it is old."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from vcjax.errors import StorageError, VcjaxError
from vcjax.history import Commit, History, KeptMerges, Prunings, Refs
from vcjax.history.collection import DELETION_SECONDS, PREFIX, UNUSED, Collecting
from vcjax.history.commit import commit_key
from vcjax.history.keys import FOLDERS, is_ours, object_of
from vcjax.history.manifest import manifest_key
from vcjax.objects.header import ArrayHeader
from vcjax.objects.layout import GRACE_SECONDS, OBJECT_FOLDERS
from vcjax.objects.liveness import Live, live_of, looked_again, needs_of, tips_of, whole_of
from vcjax.objects.store import ObjectStore
from vcjax.storage import Store
from vcjax.storage.tensorstore_internals import TEMPORARY

REFLOG_SECONDS = 90 * 24 * 3600.0
"""How long a former state of a ref keeps its commits alive."""


@dataclass(frozen=True)
class GcPlan:
    """What a collection would delete.

    Attributes:
        commits: digests of unreachable commits.
        manifests: digests of manifests that no live commit uses.
        objects: keys of the leaf objects, packs and groups that no live manifest uses.
        nbytes: stored size of those objects in bytes, as far as the store tells.
        spared: how many unreferenced objects are younger than the grace window.
        reflog: how long, in seconds, former states of refs count.
        leftovers: temporary files of writers that were killed, and notes of merges that
            were interrupted and not taken up again.
        made: when the plan was made, seconds since 1970 UTC by the store's clock.
        grace: what is younger than this is spared, seconds.
        unused: {key: when it was first found unused} of what the store tells no age of.
    """

    commits: tuple[str, ...]
    manifests: tuple[str, ...]
    objects: tuple[str, ...]
    nbytes: int
    spared: int
    reflog: float
    leftovers: tuple[str, ...] = ()
    made: float = 0.0
    grace: float = GRACE_SECONDS
    unused: Mapping[str, float] = field(default_factory=dict)

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


class _Ages:
    """How old keys are, by the store's clock.

    A store in a folder says when a key was written. Elsewhere it is what the object itself
    says, or else how long it has been known that nothing uses the key.
    """

    def __init__(self, store: Store):
        self._store = store
        self.now = store.now()
        self._since = {} if store.tells_ages else Collecting(store).unused_since()
        self.unused: dict[str, float] = {}

    def of(self, key: str, written: float | None = None) -> float:
        """The age of a key in seconds; `written` is when its content says that it was written."""
        if self._store.tells_ages:
            modified = self._store.modified(key)
            return 0.0 if modified is None else self.now - modified
        if written is None:
            written = self.unused[key] = self._since.get(key, self.now)
        return self.now - written


def plan_gc(
    refs: Refs,
    history: History,
    prunings: Prunings,
    objects: ObjectStore,
    grace: float = GRACE_SECONDS,
    reflog: float = REFLOG_SECONDS,
) -> GcPlan:
    """Finds what nothing leads to and is older than `grace` seconds.

    Only names that the disk format has are looked at, and no symbolic link is followed.

    Args:
        reflog: how long, in seconds, a former state of a ref keeps its commits alive.

    Raises:
        CorruptionError: something live cannot be read. Nothing is collected from
            a damaged repository, since what looks dead may not be.
    """
    ages = _Ages(objects.store)
    pruned = prunings.all()
    referenced = _live(refs, history, prunings, objects, ages.now - reflog)
    loose = {d: _loose(history, d) for d in history.all_commits() if d not in referenced.commits}
    dead = [
        digest
        for digest, commit in loose.items()
        if ages.of(commit_key(digest), commit and commit.time.timestamp()) >= grace
    ]
    # A commit in progress is young: all that it leads to is spared with it.
    young = loose.keys() - set(dead)
    beside = whole_of(history, objects, young, pruned, referenced.commits)
    dead = [digest for digest in dead if digest not in beside.commits]
    manifests = _dead_manifests(history, ages, loose, referenced.manifests | beside.manifests)
    manifests = [digest for digest, age in manifests.items() if age >= grace]
    keys, nbytes, spared = _dead_objects(objects, referenced.objects | beside.objects, ages, grace)
    leftovers = _leftovers(objects.store, ages, grace)
    nbytes += sum(objects.store.size(key) for key in leftovers)
    parts = tuple(dead), tuple(manifests), tuple(keys), nbytes, spared, reflog, tuple(leftovers)
    return GcPlan(*parts, ages.now, grace, ages.unused)


def _live(
    refs: Refs, history: History, prunings: Prunings, objects: ObjectStore, since: float
) -> Live:
    merges = KeptMerges(objects.store)

    def look() -> Live:
        return live_of(history, objects, tips_of(refs, merges, since), prunings.all())

    return looked_again(history, look)


def _loose(history: History, digest: str) -> Commit | None:
    """A commit that nothing leads to; None if its writer died, or is still at work."""
    with suppress(VcjaxError):
        return history.commit(digest)
    return None


def _dead_manifests(
    history: History, ages: _Ages, loose: Mapping[str, Commit | None], used: frozenset[str]
) -> dict[str, float]:
    """{digest: age} of the manifests that nothing uses; they are as old as their commits."""
    written: dict[str, float] = {}
    for commit in filter(None, loose.values()):
        time = commit.time.timestamp()
        written[commit.manifest] = max(time, written.get(commit.manifest, time))
    return {
        digest: ages.of(manifest_key(digest), written.get(digest))
        for digest in history.all_manifests()
        if digest not in used
    }


def _leftovers(store: Store, ages: _Ages, grace: float) -> list[str]:
    """Temporary files, notes of merges, and words of collectors that are older than `grace`."""
    found = [
        key
        for key in store.leftovers("")
        if key.partition("/")[0] in FOLDERS or is_ours(key.removesuffix(TEMPORARY))
    ]
    found += filter(is_ours, store.keys("merging/", links=False))
    words = [key for key in store.keys(PREFIX, links=False) if is_ours(key) and key != UNUSED]
    old = [key for key in found if ages.of(key) >= grace]
    return old + [key for key in words if ages.of(key) >= max(grace, DELETION_SECONDS)]


def _dead_objects(
    objects: ObjectStore, used: frozenset[str], ages: _Ages, grace: float
) -> tuple[list[str], int, int]:
    """(keys of the dead objects, their stored bytes, number of young ones)."""
    parts: dict[str, list[str]] = {}
    for folder in OBJECT_FOLDERS:
        for part in objects.store.keys(f"{folder}/", links=False):
            if key := object_of(part):
                parts.setdefault(key, []).append(part)
    dead, young = [], []
    for key in parts.keys() - used:
        (dead if _age_of_object(objects, key, parts[key], ages) >= grace else young).append(key)
    needed: set[str] = set()
    for key in young:
        with suppress(VcjaxError):  # whoever died over it left nothing that could be needed
            needed |= needs_of(objects, [key])
    dead = sorted(key for key in dead if key not in needed)
    nbytes = sum(objects.store.size(part) for key in dead for part in parts[key])
    return dead, nbytes, len(parts) - len(used & parts.keys()) - len(dead)


def _age_of_object(objects: ObjectStore, key: str, parts: Iterable[str], ages: _Ages) -> float:
    header_key = f"{key}/zarr.json"
    value = objects.store.read(header_key)
    if not value:  # its writer died, or is at work, before the header
        return min(ages.of(part) for part in parts)
    if objects.store.tells_ages:
        return ages.of(header_key)
    try:
        return ages.of(header_key, ArrayHeader.decode(key, value).used)
    except VcjaxError:
        return ages.of(header_key)


def sweep(
    plan: GcPlan, refs: Refs, history: History, prunings: Prunings, objects: ObjectStore
) -> None:
    """Deletes what a plan lists.

    Each object is first marked as being deleted by compare-and-set of its
    header: a writer that relies on it meanwhile either renews the header first,
    and it is spared, or sees the mark and stores the leaf anew. Of commits and manifests
    that is said beside them (`vcjax.history.collection`).

    What came to be referenced since the plan was made is spared.
    """
    store = objects.store
    since = plan.made - plan.reflog
    for name in refs.logged_names():
        refs.forget(name, since)
    commits = {commit_key(digest): digest for digest in plan.commits}
    manifests = {manifest_key(digest): digest for digest in plan.manifests}
    with Collecting(store).announced([*commits, *manifests]):
        live = _live(refs, history, prunings, objects, since)
        store.delete(
            key
            for key in manifests
            if manifests[key] not in live.manifests and _is_old(plan, key, store)
        )
        gone = [
            key for key in commits if commits[key] not in live.commits and _is_old(plan, key, store)
        ]
        store.delete(gone)
    store.delete(f"pruned/{commits[key]}" for key in gone)
    history.forget()
    keys = [key for key in plan.leftovers if is_ours(key)]
    store.delete(keys)
    store.remove_leftovers(key for key in plan.leftovers if key not in keys)
    for key in plan.objects:
        if key not in live.objects:
            delete_object(objects, key, relied_before=plan.made)
    for folder in {"/".join(key.split("/")[:-1]) for key in plan.leftovers} - {""}:
        store.remove_empty_folders(folder)
    if not store.tells_ages:
        Collecting(store).note_unused(plan.unused)


def _is_old(plan: GcPlan, key: str, store: Store) -> bool:
    """Whether a key still is as old as when the plan was made: nobody has written it anew."""
    modified = store.modified(key)
    return modified is None or plan.made - modified >= plan.grace


def delete_object(objects: ObjectStore, key: str, relied_before: float) -> None:
    """Deletes an object, unless a writer has relied on it since `relied_before`.

    Symbolic links, and what lies behind them, stay.
    """
    store = objects.store
    header_key = f"{key}/zarr.json"
    parts = [part for part in store.keys(f"{key}/", links=False) if object_of(part) == key]
    if not parts:
        return
    versioned = store.read_versioned(header_key)
    if versioned.value is not None and header_key in parts:
        try:
            header = ArrayHeader.decode(key, versioned.value)
        except VcjaxError:  # nobody can rely on it
            header = ArrayHeader({}, "", (), "", 0.0)
        if (header.relied or 0.0) >= relied_before:
            return
        marked = replace(header, deleting=True, written=store.stamp()).encode()
        try:
            taken = store.compare_and_set(header_key, marked, versioned)
        except StorageError:  # a full disk: an empty mark takes no space
            taken = store.compare_and_set(header_key, b"", versioned)
        if not taken:
            return
    store.delete(part for part in parts if part != header_key)
    store.delete([header_key] if header_key in parts else [])
    store.remove_empty_folders(key)
