"""Comparing commits: digests first, then only the chunks that differ."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from vcjax import diffing
from vcjax.errors import RevisionError
from vcjax.history import Commit, History, Manifest, Prunings, common_bases
from vcjax.objects import ObjectStore
from vcjax.objects.commit_content import side

BATCH_BYTES = 32 * 1024 * 1024
"""How much of both sides together is prepared at once: small leaves are read together, and
headers of large ones. Large leaves are then read in runs of a few chunks."""


def compare(
    old: Manifest,
    new: Manifest,
    objects: ObjectStore,
    stats: Any = True,
    paths: str | Sequence[str] | None = None,
    base: Manifest | None = None,
) -> diffing.TreeDiff:
    """What changed between two manifests; see `Repository.diff`.

    Args:
        old: of the old side.
        new: of the new one.
        objects: where the leaves of all are.
        stats: False, True, "whole" or "full".
        paths: leaf path globs: only these leaves.
        base: of what both come from: then `TreeDiff.three_way` is set.
    """
    if not stats and base is None:
        return diffing.compare(old.root, new.root).matching(paths)
    sides = side(old, objects), side(new, objects)
    if base is None:
        return diffing.examine(*sides, stats, paths, BATCH_BYTES)
    return diffing.examine_sides(*sides, side(base, objects), stats, paths, BATCH_BYTES)


class Source(Protocol):
    """Where commits are read: a repository."""

    history: History
    prunings: Prunings


def compare_commits(
    repo: Source,
    objects: ObjectStore,
    commits: Sequence[Commit],
    stats: Any,
    paths: str | Sequence[str] | None,
) -> diffing.TreeDiff:
    """What changed between two commits, without figures where data of one are gone.

    Args:
        repo: where they are.
        objects: where their leaves are.
        commits: the old one, the new one, and what both come from, if that is asked for.
        stats: False, True, "whole" or "full".
        paths: leaf path globs: only these leaves.
    """
    old, new, *base = map(repo.history.manifest_of, commits)
    gone = repo.prunings.reasons(commits) if stats else ()
    figures = False if gone else stats
    found = compare(old, new, objects, figures, paths, next(iter(base), None))
    return replace(found, unread=gone) if gone else found


def similarity_of_commits(
    repo: Source,
    objects: ObjectStore,
    commits: Sequence[Commit],
    base: Commit | None,
    names: Sequence[str],
) -> diffing.Similarity:
    """How alike commits are in what they changed of a base; see `Reader.similarity`."""
    base = base or common_base(commits, repo.history)
    for commit in (*commits, base):
        repo.prunings.require(commit)
    manifests = [repo.history.manifest_of(commit) for commit in (*commits, base)]
    return similarity(manifests[:-1], manifests[-1], objects, names)


def common_base(commits: Sequence[Commit], known: History) -> Commit:
    """The best common ancestor of some commits.

    Raises:
        RevisionError: they have none, or several.
    """
    found = common_bases([commit.digest for commit in commits], known.commit)
    if len(found) != 1:
        raise RevisionError(
            f"these commits have {len(found) or 'no'} best common ancestors",
            hint="name what they come from with base=",
            shell_hint="name what they come from: --base=REV",
        )
    return known.commit(found[0])


def similarity(
    models: Sequence[Manifest], base: Manifest, objects: ObjectStore, names: Sequence[str]
) -> diffing.Similarity:
    """How alike the task vectors of several commits are (`vcjax.diffing.similarity`)."""
    sides = [side(manifest, objects) for manifest in models]
    return diffing.similarity_of(sides, side(base, objects), names, BATCH_BYTES)
