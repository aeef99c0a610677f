"""Blame: which commit last changed each leaf, or chunk, from manifests alone."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcjax.history.ancestry import Lookup
from vcjax.history.commit import Commit
from vcjax.history.listing import html_listing, text_listing
from vcjax.history.manifest_changes import (
    StoredLeaf,
    Trees,
    changed_leaves,
    moves,
    shifts,
    stored_leaves,
)
from vcjax.tree import LeafSpec, select


@dataclass(frozen=True)
class BlamedLeaf:
    """The commit that last changed a leaf, or one of its chunks.

    Attributes:
        path: leaf path in the revision that was asked about.
        spec: dtype and shape there.
        commit: the commit that last changed it.
        old_path: its leaf path in that commit; another one if it has moved since.
        chunk: number of the chunk, in C order of the grid; None for the whole leaf.
        chunks: how many chunks the leaf has.
    """

    path: str
    spec: LeafSpec
    commit: Commit
    old_path: str
    chunk: int | None = None
    chunks: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; the commit by its digest."""
        return {
            "path": self.path,
            "dtype": self.spec.dtype,
            "shape": list(self.spec.shape),
            "commit": self.commit.digest,
            "old_path": self.old_path,
            "chunk": self.chunk,
            "chunks": self.chunks,
        }


class Blame(list[BlamedLeaf]):
    """The blamed leaves of a commit, in tree order; a list that shows itself as a table."""

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                leaf.path if leaf.chunk is None else f"{leaf.path} chunk {leaf.chunk}",
                leaf.commit.digest[:8],
                f"{leaf.commit.time:%Y-%m-%d %H:%M}",
                leaf.commit.summary,
            )
            for leaf in self
        ]

    def __repr__(self) -> str:
        return text_listing(f"<Blame: {len(self):,} leaves or chunks>", self._rows())

    def _repr_html_(self) -> str:
        return html_listing("Blame", ("leaf", "commit", "time", "message"), self._rows())


_Target = tuple[str, int | None]
"""A leaf path in the tip and a chunk of it."""

_Suspects = dict[str, list[_Target]]
"""{leaf path in some commit: what of the tip has the content that is there}."""


def blame(
    tip: Commit,
    lookup: Lookup,
    trees: Trees,
    chunks: bool = False,
    paths: str | Sequence[str] | None = None,
) -> Blame:
    """The commit that last changed each leaf of a commit, in tree order.

    As `git blame` does, every commit hands to its parents what it has from them:
    a leaf that a parent has at the same path is that parent's, and so is one whose
    content left another path in the same step (`moves`, `shifts`); the first parent
    comes first. What is
    left is the commit's own. Trees of commits with the same tree digest as their
    parent are not read, and no leaf data at all.

    Args:
        tip: the commit.
        lookup: digest -> Commit.
        trees: commit -> root of its stored tree.
        chunks: whether each chunk of a leaf is followed by itself, as long as
            dtype and shape stay what they are.
        paths: leaf path globs: only these leaves.

    Raises:
        TreeError: a glob matches no leaf.
    """
    leaves = dict(stored_leaves(trees(tip)))
    suspects: _Suspects = {}
    for path in select(leaves, paths):
        count = leaves[path].chunk_count
        suspects[path] = [(path, i) for i in range(count)] if chunks else [(path, None)]
    found: dict[_Target, tuple[Commit, str]] = {}
    for commit, path, targets in _blamed(tip, suspects, lookup, trees):
        found.update((target, (commit, path)) for target in targets)
    return Blame(
        BlamedLeaf(path, leaves[path].spec, *found[path, chunk], chunk, leaves[path].chunk_count)
        for path, targets in suspects.items()
        for _, chunk in targets
    )


def _blamed(
    tip: Commit, suspects: _Suspects, lookup: Lookup, trees: Trees
) -> Iterator[tuple[Commit, str, list[_Target]]]:
    """What each commit is to blame for, as (commit, leaf path in it, what of the tip)."""
    waiting: dict[str, _Suspects] = {tip.digest: {k: list(v) for k, v in suspects.items()}}
    queue = [(-tip.generation, tip.digest)]
    while queue:  # the highest generation first: a commit after all that hand to it
        commit = lookup(heapq.heappop(queue)[1])
        held = waiting.pop(commit.digest)
        for digest in dict.fromkeys(commit.parents):
            parent = lookup(digest)
            passed, held = _passed(parent, commit, held, trees)
            if not passed:
                continue
            if digest not in waiting:
                heapq.heappush(queue, (-parent.generation, digest))
                waiting[digest] = passed
                continue
            for path, targets in passed.items():
                waiting[digest].setdefault(path, []).extend(targets)
        for path, targets in held.items():
            yield commit, path, targets


def _passed(
    parent: Commit, commit: Commit, held: _Suspects, trees: Trees
) -> tuple[_Suspects, _Suspects]:
    """What of `held` a parent has, by its path there, and what it has not."""
    if not held or parent.tree == commit.tree:
        return held, {}
    changed = {
        path: (before, after)
        for path, before, after in changed_leaves(trees(parent), trees(commit))
    }
    kept: _Suspects = {}
    arrived: _Suspects = {}
    origins = shifts(changed, trees(parent), trees(commit)) | moves(changed)
    passed = held  # nobody else has it: what differs is taken out of it
    for path, (before, after) in changed.items():
        targets = passed.pop(path, None)
        if targets is None:
            continue
        if path in origins:
            arrived.setdefault(origins[path], []).extend(targets)
            continue
        same, other = _by_chunk(before, after, targets)
        if same:
            arrived.setdefault(path, []).extend(same)
        if other:
            kept[path] = other
    passed.update(arrived)
    return passed, kept


def _by_chunk(
    before: StoredLeaf | None, after: StoredLeaf | None, targets: Iterable[_Target]
) -> tuple[list[_Target], list[_Target]]:
    """The targets whose chunk is the same before and after, and the others."""
    targets = list(targets)
    if before is None or after is None or _grid(before.fields) != _grid(after.fields):
        return [], targets
    olds, news = before.chunks, after.chunks
    same = [t for t in targets if t[1] is not None and olds[t[1]] == news[t[1]]]
    return same, [target for target in targets if target not in same]


def _grid(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return fields["dtype"], fields["shape"], fields["home"] == "python"
