"""Planning the merge of commits: what they come from, and what happens to each leaf.

Needs manifests alone, and no JAX.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from vcjax import threeway
from vcjax.history import (
    History,
    Manifest,
    common_bases,
    independent,
    is_ancestor,
    merge_bases,
)
from vcjax.threeway import ABSENT, MergePlan
from vcjax.threeway.plan import digest_lookup
from vcjax.threeway.rules import Undecided


def plan_commits(history: History, digests: Sequence[str]) -> tuple[MergePlan, list[str]]:
    """The plan of merging commits, by their digests, and those of their merge bases.

    Of more than two sides the bases are those of all; each two of them are compared
    with what these two come from.
    """
    bases = common_bases(digests, history.commit)
    roots = {tuple(bases): _joined(history, bases)}
    base = roots[tuple(bases)]
    pairs = {}
    for (i, one), (j, other) in combinations(enumerate(digests), 2):
        between = tuple(merge_bases(one, other, history.commit))
        if between not in roots:
            roots[between] = _joined(history, between)
        if roots[between] is not base:
            pairs[i, j] = roots[between]
    roots_of = [history.manifest_of(history.commit(digest)).root for digest in digests]
    return plan_roots(base, roots_of, pairs), bases


def kept_sides(history: History, digests: Sequence[str]) -> list[int]:
    """The places of those commits that bring something: ours, and what no other one contains."""
    ours, *theirs = digests
    news = [digest for digest in theirs if not is_ancestor(digest, ours, history.commit)]
    kept = set(independent(news, history.commit))
    places = {digest: at for at, digest in reversed(list(enumerate(theirs, start=1)))}
    return [0, *sorted(places[digest] for digest in kept)]


def _joined(history: History, bases: Sequence[str]) -> Any:
    """The tree that merge bases make together.

    After criss-cross merges there are several. They are merged with each other
    first; where they conflict, the base is undecided, so that a leaf on which two
    sides differ is a conflict too.
    """
    if not bases:
        return ABSENT
    roots = [history.manifest_of(history.commit(digest)).root for digest in bases]
    root = roots[0]
    for other, digest in zip(roots[1:], bases[1:], strict=True):
        below = _joined(history, merge_bases(bases[0], digest, history.commit))
        plan = plan_roots(below, (root, other))
        root = plan.resolved(dict.fromkeys(plan.conflicts, Undecided()))
    return root


def plan_roots(base: Any, sides: Sequence[Any], pairs: Any = None) -> MergePlan:
    """Plans the merge of roots of manifests (see `vcjax.threeway.plan_octopus`)."""
    pairs = pairs or {}
    roots = {id(root): root for root in (base, *sides, *pairs.values()) if root is not ABSENT}
    manifests = [Manifest(root) for root in roots.values()]
    return threeway.plan_octopus(base, sides, pairs, digest_lookup(*manifests))
