"""Graph algorithms over commits. They take `lookup` (digest -> Commit) and never see a store.

Every commit carries its generation (1 + the largest of its parents'), so the
walk that takes the highest generation first meets each commit after all of its
descendants, whatever the clocks said.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

from vcjax.history.commit import Commit

Lookup = Callable[[str], Commit]


Follow = Callable[[Commit], Iterable[str]]
"""The parents of a commit by which a walk goes on."""


def walk(
    heads: Iterable[str],
    lookup: Lookup,
    first_parent: bool = False,
    exclude: Iterable[str] = (),
    follow: Follow | None = None,
) -> Iterator[Commit]:
    """All ancestors of `heads`, themselves included; children always before parents.

    Args:
        heads: digests of commits.
        lookup: digest -> Commit.
        first_parent: follow only the first parent of merges.
        exclude: digests of commits that are left out with all their ancestors.
        follow: which parents to follow, once a commit was given; all by default.
    """
    queue: list[tuple[int, float, str, Commit]] = []
    seen: set[str] = set()
    excluded = set(exclude)
    wanted = 0  # how many in the queue are not excluded

    def push(digest: str) -> None:
        nonlocal wanted
        if digest not in seen:
            seen.add(digest)
            commit = lookup(digest)
            wanted += digest not in excluded
            heapq.heappush(queue, (-commit.generation, -commit.time.timestamp(), digest, commit))

    for head in (*excluded, *heads):
        push(head)
    while queue and wanted:
        commit = heapq.heappop(queue)[-1]
        if commit.digest in excluded:
            for parent in commit.parents:
                wanted -= parent in seen and parent not in excluded
                excluded.add(parent)
                push(parent)
            continue
        wanted -= 1
        yield commit
        parents = commit.parents if follow is None else follow(commit)
        for parent in commit.parents[:1] if first_parent else parents:
            push(parent)


def is_ancestor(ancestor: str, descendant: str, lookup: Lookup) -> bool:
    """Whether `ancestor` is `descendant` or one of its ancestors."""
    floor = lookup(ancestor).generation
    for commit in walk([descendant], lookup):
        if commit.digest == ancestor:
            return True
        if commit.generation < floor:
            return False
    return False


def merge_bases(one: str, other: str, lookup: Lookup) -> list[str]:
    """The best common ancestors of two commits (see `common_bases`)."""
    return common_bases([one, other], lookup)


def common_bases(digests: Sequence[str], lookup: Lookup) -> list[str]:
    """The best common ancestors of some commits.

    These are the ancestors of all of them that are no ancestor of another such
    ancestor: one in simple histories, two or more after criss-cross merges,
    none for unrelated histories.
    """
    common, stale = (1 << len(digests)) - 1, 1 << len(digests)
    flags: dict[str, int] = {}
    for at, digest in enumerate(digests):
        flags[digest] = flags.get(digest, 0) | 1 << at
    queue = [(-lookup(digest).generation, digest) for digest in flags]
    heapq.heapify(queue)
    queued = set(flags)
    bases = []
    while queue and any(not flags[digest] & stale for _, digest in queue):
        digest = heapq.heappop(queue)[1]
        queued.discard(digest)
        mark = flags[digest]
        if mark & common == common and not mark & stale:
            bases.append(digest)
            mark |= stale
        for parent in lookup(digest).parents:
            flags[parent] = flags.get(parent, 0) | mark
            if parent not in queued:
                queued.add(parent)
                heapq.heappush(queue, (-lookup(parent).generation, parent))
    return bases


def independent(digests: Sequence[str], lookup: Lookup) -> list[str]:
    """Those of some commits that are no ancestor of another of them, each once."""
    unique = list(dict.fromkeys(digests))
    return [
        digest
        for digest in unique
        if not any(is_ancestor(digest, other, lookup) for other in unique if other != digest)
    ]
