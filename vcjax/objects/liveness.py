"""What commits, and refs and their logs, lead to."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from vcjax.errors import MissingObjectError, VcjaxError
from vcjax.history import Commit, Head, History, KeptMerges, Ref, Refs
from vcjax.objects.layout import HEADERS_AT_ONCE, leaf_key, pack_key
from vcjax.objects.store import ObjectStore

LOOKS = 3
"""How often is looked again for what is missing: others may delete what is not needed any more."""

T = TypeVar("T")

RefStates = dict[str, Ref | Head]
"""{full name: state}."""


def present(refs: Refs) -> RefStates:
    """The states of all refs and of `HEAD`, by full name."""
    return {**refs.under("refs/"), **refs.under("aliases/"), "HEAD": refs.head()}


def commits_of(states: RefStates) -> set[str]:
    """The commits that refs point to."""
    return {state.commit for state in states.values() if state.commit}


def tips_of(refs: Refs, merges: KeptMerges, since: float) -> frozenset[str]:
    """Commits that refs point to, or pointed to after some time, or being merged."""
    tips = commits_of(present(refs)) | merges.commits()
    for name in refs.logged_names():
        tips |= refs.former(name, since)
    return frozenset(tips)


@dataclass(frozen=True)
class Live:
    """What some commits lead to.

    Attributes:
        commits: digests of them and their ancestors.
        manifests: digests.
        objects: keys of the leaf objects, packs and groups that unpruned commits use.
    """

    commits: frozenset[str]
    manifests: frozenset[str]
    objects: frozenset[str]


def looked_again(history: History, look: Callable[[], T]) -> T:
    """What is found, looking again where something is missing: a ref may have moved on from it.

    Raises:
        MissingObjectError: it stays missing.
    """
    for _ in range(LOOKS - 1):
        with suppress(MissingObjectError):
            return look()
        history.forget()
    return look()


def whole_of(
    history: History,
    objects: ObjectStore,
    tips: Iterable[str],
    pruned: frozenset[str],
    known: frozenset[str],
) -> Live:
    """What those of some commits lead to that are whole; the others' writers died, or are at work.

    Args:
        known: commits below which nothing need be looked at.
    """
    commits: set[str] = set()
    manifests: set[str] = set()
    used: set[str] = set()
    for tip in tips:
        with suppress(VcjaxError):
            found = ancestors(history, [tip], known | commits)
            kept = {commit.manifest for digest, commit in found.items() if digest not in pruned}
            used |= objects_of(history, objects, kept)
            manifests |= {commit.manifest for commit in found.values()}
            commits |= found.keys()
    return Live(frozenset(commits), frozenset(manifests), frozenset(used))


def live_of(
    history: History, objects: ObjectStore, tips: Iterable[str], pruned: frozenset[str]
) -> Live:
    """What commits lead to, the objects of pruned ones left out."""
    commits = ancestors(history, tips)
    manifests = {commit.manifest for commit in commits.values()}
    kept = {commit.manifest for digest, commit in commits.items() if digest not in pruned}
    used = objects_of(history, objects, kept)
    return Live(frozenset(commits), frozenset(manifests), frozenset(used))


def ancestors(
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


def objects_of(
    history: History,
    objects: ObjectStore,
    manifests: Iterable[str],
    known: dict[str, tuple[str, ...]] | None = None,
) -> set[str]:
    """Keys of the objects that manifests refer to, and of all that these stand on.

    Args:
        known: as for `needs_of`.
    """
    used: set[str] = set()
    for manifest in manifests:
        for entry in history.manifest(manifest).leaves.values():
            if entry.packed is not None:
                used.add(pack_key(entry.packed.pack))
            elif entry.is_object:
                used.add(leaf_key(entry.digest))
    return used | needs_of(objects, used, known)


def needs_of(
    objects: ObjectStore, keys: Iterable[str], known: dict[str, tuple[str, ...]] | None = None
) -> set[str]:
    """Keys of all objects that some stand on, directly or not: bases, groups.

    Args:
        known: {key: what its header says} of headers that need not be read; those
            that are read are added.
    """
    known = {} if known is None else known
    found: set[str] = set()
    queue = sorted(keys)
    while queue:
        unread = [key for key in queue if key not in known]
        for start in range(0, len(unread), HEADERS_AT_ONCE):
            part = unread[start : start + HEADERS_AT_ONCE]
            for key, header in zip(part, objects.read_headers(part), strict=True):
                if header is not None:
                    known[key] = header.needs
        needs = {need for key in queue for need in known.get(key, ())}
        queue = sorted(needs - found)
        found |= needs
    return found
