"""Collecting garbage: mark what refs and their logs lead to, sweep the rest when it is old."""

import time
from dataclasses import dataclass, replace
from typing import Any

from vcjax.history import History, KeptMerges, Prunings, Refs
from vcjax.history.commit import commit_key
from vcjax.history.manifest import manifest_key
from vcjax.objects.header import ArrayHeader
from vcjax.objects.layout import GRACE_SECONDS, OBJECT_FOLDERS
from vcjax.objects.liveness import live_of, needs_of, tips_of
from vcjax.objects.store import ObjectStore

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
    merges = KeptMerges(objects.store)
    tips = tips_of(refs, merges, reflog)
    pruned = prunings.all()
    referenced = live_of(history, objects, tips, pruned)
    loose = [digest for digest in history.all_commits() if digest not in referenced.commits]
    dead = [digest for digest in loose if now - history.commit(digest).time.timestamp() >= grace]
    # A commit in progress is young: all that it leads to is spared with it.
    live = live_of(history, objects, tips | (set(loose) - set(dead)), pruned)
    dead = [digest for digest in dead if digest not in live.commits]
    manifests = [
        digest
        for digest in history.all_manifests()
        if digest not in live.manifests and _age(objects, manifest_key(digest), now) >= grace
    ]
    keys, nbytes, spared = _dead_objects(objects, live.objects, now, grace)
    leftovers = [
        key
        for folder in (*OBJECT_FOLDERS, "manifests", "commits")
        for key in objects.store.leftovers(folder)
        if _age(objects, key, now) >= grace
    ]
    leftovers += [key for key in objects.store.keys("merging/") if _age(objects, key, now) >= grace]
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
    for key in (key for folder in OBJECT_FOLDERS for key in objects.store.keys(f"{folder}/")):
        parts.setdefault("/".join(key.split("/")[:3]), []).append(key)
    dead, young = [], []
    for key in parts.keys() - used:
        value = objects.store.read(f"{key}/zarr.json")
        if value is None:  # its writer died, or is at work, before the header
            age = min(_age(objects, part, now) for part in parts[key])
        else:
            age = now - ArrayHeader.decode(key, value).used
        (dead if age >= grace else young).append(key)
    needed = needs_of(objects, young)
    dead = sorted(key for key in dead if key not in needed)
    nbytes = sum(objects.store.size(part) for key in dead for part in parts[key])
    return dead, nbytes, len(parts) - len(used & parts.keys()) - len(dead)


def sweep(
    plan: GcPlan, refs: Refs, history: History, prunings: Prunings, objects: ObjectStore
) -> None:
    """Deletes what a plan lists.

    Each object is first marked as being deleted by compare-and-set of its
    header: a writer that relies on it meanwhile either renews the header first,
    and it is spared, or sees the mark and stores the leaf anew.

    What came to be referenced since the plan was made is spared.
    """
    tips = tips_of(refs, KeptMerges(objects.store), plan.reflog)
    live = live_of(history, objects, tips, prunings.all())
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
    notes = [key for key in plan.leftovers if key.startswith("merging/")]
    objects.store.delete(notes)
    objects.store.remove_leftovers(key for key in plan.leftovers if key not in notes)
    for key in plan.objects:
        if key not in live.objects:
            delete_object(objects, key, relied_before=plan.made)
    for folder in {"/".join(key.split("/")[:-1]) for key in plan.leftovers}:
        objects.store.remove_empty_folders(folder)


def delete_object(objects: ObjectStore, key: str, relied_before: float) -> None:
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
