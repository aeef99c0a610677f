"""The commits that changed some leaves, from manifests alone, as `git log -- PATH` finds them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vcjax.history.ancestry import Lookup, walk
from vcjax.history.commit import Commit
from vcjax.history.manifest_changes import StoredLeaf, Trees, changed_leaves, moves
from vcjax.tree import pattern


@dataclass(frozen=True)
class Touch:
    """What a commit changed of some leaves, against its first parent.

    Attributes:
        commit: the commit.
        counts: {"added", "removed", "changed" or "moved": number of leaves}.
        nbytes: size of these leaves in memory, bytes; of removed ones as they were.
    """

    commit: Commit
    counts: dict[str, int]
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, without the commit."""
        return {"counts": self.counts, "nbytes": self.nbytes}


class TouchWalk:
    """A walk over the commits that changed some leaves, newest first.

    History is simplified as `git log -- PATH` does: a commit that has these
    leaves as one of its parents has is left out, and only this parent is
    followed, so a side branch that did not matter in the end is not shown. Where
    no parent has them so, all are followed.
    """

    def __init__(
        self,
        heads: Sequence[str],
        lookup: Lookup,
        trees: Trees,
        globs: Sequence[str],
        first_parent: bool = False,
        exclude: Iterable[str] = (),
    ):
        """Prepares the walk.

        Args:
            heads: digests of the commits where it starts.
            lookup: digest -> Commit.
            trees: commit -> root of its stored tree.
            globs: leaf path globs.
            first_parent: follow only the first parent of merges.
            exclude: digests of commits that are left out with their ancestors.
        """
        self._heads = heads
        self._lookup = lookup
        self._trees = trees
        self._patterns = [pattern(glob) for glob in globs]
        self._first_parent = first_parent
        self._exclude = exclude
        self._followed: dict[str, tuple[str, ...]] = {}
        self._listed: set[str] = set()

    def __iter__(self) -> Iterator[Touch]:
        def follow(commit: Commit) -> tuple[str, ...]:
            return self._followed[commit.digest]

        walked = walk(self._heads, self._lookup, exclude=self._exclude, follow=follow)
        for commit in walked:
            touch = self._look(commit)
            if touch is not None:
                self._listed.add(commit.digest)
                yield touch

    def _look(self, commit: Commit) -> Touch | None:
        """What the commit changed, None if it is left out; notes by which parents to go on."""
        parents = tuple(dict.fromkeys(commit.parents))[: 1 if self._first_parent else None]
        self._followed[commit.digest] = parents
        first: dict[str, tuple[StoredLeaf | None, StoredLeaf | None]] = {}
        for number, digest in enumerate(parents):
            changes = self._changes(self._lookup(digest), commit)
            if not changes:
                self._followed[commit.digest] = (digest,)
                return None
            first = first if number else changes
        if not parents:
            first = self._changes(None, commit)
        return _touch(commit, first) if first else None

    def _changes(
        self, parent: Commit | None, commit: Commit
    ) -> dict[str, tuple[StoredLeaf | None, StoredLeaf | None]]:
        if parent is not None and parent.tree == commit.tree:
            return {}
        before = None if parent is None else self._trees(parent)
        return {
            path: (old, new)
            for path, old, new in changed_leaves(before, self._trees(commit))
            if any(pattern.match(path) for pattern in self._patterns)
        }

    def parents(self, commit: Commit) -> tuple[str, ...]:
        """The nearest ancestors of a listed commit that are listed too, once all were walked."""
        return tuple(dict.fromkeys(filter(None, map(self._nearest, self._followed[commit.digest]))))

    def _nearest(self, digest: str) -> str | None:
        while digest not in self._listed:
            followed = self._followed.get(digest, ())
            if not followed:
                return None
            digest = followed[0]
        return digest


def _touch(
    commit: Commit, changes: dict[str, tuple[StoredLeaf | None, StoredLeaf | None]]
) -> Touch:
    origins = moves(changes)
    counts: dict[str, int] = {"added": 0, "removed": 0, "changed": 0, "moved": 0}
    nbytes = 0
    for path, (old, new) in changes.items():
        if old is not None and new is None and path in origins.values():
            continue
        leaf = old if new is None else new
        assert leaf is not None, "one of the two is there"
        nbytes += leaf.nbytes
        status = "changed" if old and new else "removed" if old else "added"
        counts["moved" if path in origins else status] += 1
    return Touch(commit, counts, nbytes)
