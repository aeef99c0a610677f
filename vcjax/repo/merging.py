"""Merging commits: find the base, plan from manifests, let a method settle the conflicts."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vcjax import merging, tree
from vcjax.errors import ConflictError, MergeError
from vcjax.history import (
    Commit,
    History,
    LeafEntry,
    Manifest,
    checked_metadata,
    is_ancestor,
    merge_bases,
)
from vcjax.merging import ABSENT, Decision, MergePlan
from vcjax.objects import ObjectStore
from vcjax.repo.committing import Change, digest_lookup, stage
from vcjax.repo.restoring import read_leaves


@dataclass(frozen=True)
class _Undecided:
    """What stands for the base where several bases disagree: equal to nothing."""

    digest: str = ""  # which no stored leaf has
    spec: Any = None


@dataclass(frozen=True)
class MergeRequest:
    """Everything that `Repository.merge` was asked for; see there."""

    ours: Commit
    theirs: Commit
    names: tuple[str, str]
    method: "merging.MergeMethod | None"
    resolve: Mapping[str, str] | str | None
    weights: Any
    key: Any
    message: str | None
    author: str
    metadata: dict[str, Any]
    metrics: dict[str, float]


def plan_commits(history: History, ours: Commit, theirs: Commit) -> tuple[MergePlan, list[str]]:
    """The plan of merging two commits, and the digests of their merge bases."""
    base, bases = base_root(history, ours, theirs)
    ours_root = history.manifest_of(ours).root
    return plan_roots(base, ours_root, history.manifest_of(theirs).root), bases


def merge_commits(request: MergeRequest, history: History, objects: ObjectStore) -> Commit | Change:
    """The change that merges two commits; a commit where one contains the other.

    Raises:
        ConflictError: conflicts are left that nothing settles.
    """
    ours, theirs = request.ours, request.theirs
    if is_ancestor(theirs.digest, ours.digest, history.commit):
        return ours
    if is_ancestor(ours.digest, theirs.digest, history.commit):
        return theirs
    plan, bases = plan_commits(history, ours, theirs)
    settled = chosen_sides(plan, request.resolve)
    taken = dict.fromkeys(settled, "side")
    if request.method is not None:
        first = {
            path: decision.ours
            for path, decision in plan.conflicts.items()
            if path not in settled and _takes_first(decision)
        }
        settled |= first
        taken |= dict.fromkeys(first, "first")
        rest = plan.without(settled)
        if rest.conflicts:
            merged = from_method(rest, request, objects)
            settled |= merged
            taken |= dict.fromkeys(merged, "method")
    refuse(plan, settled, request.names)
    return Change(
        manifest=Manifest(plan.resolved(settled)),
        message=request.message or f"Merge {request.names[1]} into {request.names[0]}",
        author=request.author,
        metadata=request.metadata,
        metrics=request.metrics,
        provenance=checked_metadata(
            {
                "operation": "merge",
                "inputs": [ours.digest, theirs.digest],
                "bases": bases,
                "method": merging.to_config(request.method) if request.method else None,
                "weights": checked_metadata(_listed(request.weights), "weights"),
                "decisions": {
                    d.path: taken.get(d.path, d.verdict)
                    for d in plan.decisions
                    if d.verdict != "unchanged"
                },
            },
            "provenance",
        ),
        extra_parents=(theirs.digest,),
        reason="merge",
    )


def _listed(weights: Any) -> Any:
    return None if weights is None else np.asarray(weights, np.float64).tolist()


def base_root(history: History, ours: Commit, theirs: Commit) -> tuple[Any, list[str]]:
    """The tree that both sides come from, and the commits that it is made of.

    After criss-cross merges there are several merge bases. They are merged with
    each other first; where they conflict, the base is undecided, so that a leaf
    on which the two sides differ is a conflict too.
    """
    bases = merge_bases(ours.digest, theirs.digest, history.commit)
    if not bases:
        return ABSENT, []
    roots = [history.manifest_of(history.commit(digest)).root for digest in bases]
    root = roots[0]
    for other, digest in zip(roots[1:], bases[1:], strict=True):
        below, _ = base_root(history, history.commit(bases[0]), history.commit(digest))
        plan = plan_roots(below, root, other)
        root = plan.resolved(dict.fromkeys(plan.conflicts, _Undecided()))
    return root, bases


def plan_roots(base: Any, ours: Any, theirs: Any) -> MergePlan:
    """Plans the merge of three roots of manifests."""
    manifests = [Manifest(root) for root in (base, ours, theirs) if root is not ABSENT]
    return merging.plan_merge(base, ours, theirs, digest_lookup(*manifests))


def from_method(
    plan: MergePlan, request: MergeRequest, objects: ObjectStore
) -> dict[str, LeafEntry]:
    """What a merge method makes of the conflicting leaves, stored.

    Raises:
        ConflictError: a conflict is not one of numbers.
        MergeError: the method cannot settle it.
    """
    method = request.method
    assert method is not None
    stuck = [d for d in plan.conflicts.values() if d.verdict != "conflict"]
    if stuck:
        raise ConflictError(
            "these conflicts cannot be settled by a merge method:",
            paths=[f"{d.path}: {_explain(d)}" for d in stuck],
            hint="settle them with resolve={path: 'ours' or 'theirs'}",
        )
    conflicts = plan.conflicts
    sides = [_read(objects, {p: getattr(d, side) for p, d in conflicts.items()}) for side in _SIDES]
    base = None
    if method.needs_base:
        lacking = [path for path, d in conflicts.items() if not isinstance(d.base, LeafEntry)]
        if lacking:
            raise MergeError(
                f"{method.name} needs a base, and there is none for {', '.join(lacking)}",
                hint="use a method that needs none, such as average()",
            )
        base = _read(objects, {path: d.base for path, d in conflicts.items()})
    # Without this JAX would cut 64-bit leaves to 32 bits; others are computed as they are.
    wide = any(tree.itemsize(d.ours.spec.dtype) == 8 for d in conflicts.values())
    with jax.enable_x64(True) if wide else nullcontext():
        merged = merging.merge(
            sides, method=method, base=base, key=request.key, weights=request.weights
        )
    paths = tuple(merged)
    leaves = tuple(_like(conflicts[path].ours.spec, merged[path]) for path in paths)
    manifest = stage(tree.Node("dict", paths, leaves), objects)
    return dict(zip(paths, manifest.root.children, strict=True))


_SIDES = ("ours", "theirs")


def _like(spec: tree.LeafSpec, value: Any) -> tree.Leaf:
    """A merged leaf with the spec (home, dtype, Variable type) of our side."""
    return tree.Leaf(spec, np.asarray(value).astype(tree.storage_dtype(spec.dtype), copy=False))


def _read(objects: ObjectStore, entries: Mapping[str, LeafEntry]) -> dict[str, Any]:
    return {path: leaf.data for path, leaf in read_leaves(objects, entries)}


def _takes_first(decision: Decision) -> bool:
    """Whether a conflict is between leaves of a kind that no method averages.

    The rule is that of `vcjax.merge`: step counters, PRNG keys, masks and text
    have no mean, and are taken from the first side.
    """
    if decision.verdict != "conflict":
        return False
    spec = decision.ours.spec
    return spec.is_value or not tree.is_inexact(spec.dtype)


def _explain(decision: Decision) -> str:
    sides = {"ours": decision.ours, "theirs": decision.theirs}
    words = []
    for side, node in sides.items():
        if node is ABSENT:
            words.append(f"deleted in {side}")
        elif isinstance(node, tree.Node):
            words.append(f"{node.kind} in {side}")
        else:
            words.append(f"{node.spec} in {side}")
    return ", ".join(words)


def chosen_sides(plan: MergePlan, resolve: Mapping[str, str] | str | None) -> dict[str, Any]:
    """The conflicts that are settled by taking one side.

    Args:
        resolve: a side ("ours", "theirs", "base") for all conflicts, or
            {path glob: side}.

    Raises:
        MergeError: an unknown side.
    """
    rules = {"**": resolve} if isinstance(resolve, str) else dict(resolve or {})
    for side in rules.values():
        if side not in ("ours", "theirs", "base"):
            raise MergeError(
                f"{side!r} is no side of a merge", hint="use 'ours', 'theirs' or 'base'"
            )
    chosen = {}
    for path, decision in plan.conflicts.items():
        for glob, side in rules.items():
            if tree.pattern(glob).match(path):
                chosen[path] = getattr(decision, side)
                break
    undecided = [path for path, node in chosen.items() if _is_undecided(node)]
    if isinstance(plan.root, Decision) and chosen.get(plan.root.path, plan.root) is ABSENT:
        undecided.append("the whole tree")
    if undecided:
        raise MergeError(
            f"there is no base to take for {', '.join(undecided)}",
            hint="take 'ours' or 'theirs': the histories have no common ancestor, "
            "or several that disagree",
        )
    return chosen


def _is_undecided(node: Any) -> bool:
    """Whether the bases disagree on a node, or on something below it."""
    if isinstance(node, tree.Node):
        return any(_is_undecided(child) for child in node.children)
    return isinstance(node, _Undecided)


def refuse(plan: MergePlan, settled: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises if conflicts are left that nobody has settled.

    Raises:
        ConflictError: naming them.
    """
    left = [f"{p}: {_explain(d)}" for p, d in plan.conflicts.items() if p not in settled]
    if left:
        raise ConflictError(
            f"{' and '.join(names)} changed {len(left)} leaves differently:",
            paths=left,
            hint="merge their numbers with method=vcjax.merging.average() (CLI: --method=average), "
            "or take one side with resolve='ours' or 'theirs'",
        )
