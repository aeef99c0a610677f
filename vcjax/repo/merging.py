"""Merging commits: find the base, plan from manifests, let a method settle the conflicts."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
from vcjax.merging.inputs import NO_JAX_ARRAYS, check_globs, check_inputs
from vcjax.objects import ObjectStore
from vcjax.repo.committing import Change, digest_lookup, stage
from vcjax.repo.comparing import batches
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
    if isinstance(weights, Mapping):
        return {glob: _listed(numbers) for glob, numbers in weights.items()}
    return None if weights is None else np.asarray(weights, np.float64).tolist()


def as_method(method: Any) -> "merging.MergeMethod | None":
    """A merge method from one, its name, or its {"name": …, "parameters": …}.

    Raises:
        MergeError: it is anything else, or there is no such method.
    """
    if method is None or isinstance(method, merging.MergeMethod):
        return method
    config = {"name": method} if isinstance(method, str) else method
    if isinstance(config, Mapping) and isinstance(config.get("name"), str):
        parameters = config.get("parameters") or {}
        if config.keys() <= {"name", "parameters"} and isinstance(parameters, Mapping):
            try:
                return merging.from_config(config["name"], parameters)
            except (KeyError, AttributeError, TypeError) as error:  # parts of compositions
                raise MergeError(
                    f"{config['name']} cannot be made of these parameters: {error!r}",
                    hint="write the method's `to_config`",
                ) from error
    name = getattr(method, "__name__", None)
    raise MergeError(
        f"{method!r} is no merge method",
        hint=f"call it: method={name}()"
        if callable(method) and name in merging.methods()
        else "give a method such as vcjax.merging.average(), its name, or "
        "{'name': …, 'parameters': …}",
    )


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
    conflicts = plan.conflicts
    stuck = [d for d in conflicts.values() if d.verdict != "conflict"]
    if stuck:
        raise ConflictError(
            "these conflicts cannot be settled by a merge method:",
            paths=[f"{d.path}: {_explain(d)}" for d in stuck],
            hint=_advice(stuck),
        )
    lacking = [path for path, d in conflicts.items() if not isinstance(d.base, LeafEntry)]
    if method.needs_base and lacking:
        raise MergeError(
            f"{method.name} needs a base, and there is none for {', '.join(lacking)}",
            hint="use a method that needs none, such as average()",
        )
    # Of a batch, these would be too strict: a rule or weight may be for leaves of another.
    check_inputs(method, len(_SIDES), method.needs_base, request.weights, None, request.key)
    check_globs(method, request.weights, list(conflicts))
    for path in conflicts:
        method.for_leaf(path)
    sides = (*_SIDES, "base") if method.needs_base else _SIDES
    sizes = {path: sum(getattr(d, s).nbytes for s in sides) for path, d in conflicts.items()}
    # Without this JAX would cut 64-bit leaves to 32 bits; others are computed as they are.
    wide = any(tree.itemsize(d.ours.spec.dtype) == 8 for d in conflicts.values())
    settled: dict[str, LeafEntry] = {}
    with jax.enable_x64(True) if wide else nullcontext():
        whole = method.locality == "model"
        for batch in [list(conflicts)] if whole else batches(sizes, BATCH_BYTES):
            settled |= _merge_batch({path: conflicts[path] for path in batch}, request, objects)
    return settled


BATCH_BYTES = 64 * 1024 * 1024
"""How many bytes of stored leaves, all sides together, are merged at once; leaves larger
than this alone. Methods that look at the whole model take all at once.

Merging 268 MB of 64 leaves that all changed peaks at 5.3 times their size in one batch.
"""

_SIDES = ("ours", "theirs")


def _merge_batch(
    conflicts: Mapping[str, Decision], request: MergeRequest, objects: ObjectStore
) -> dict[str, LeafEntry]:
    """Some conflicts merged and stored. A function, so that their data are gone before the next."""
    assert request.method is not None
    method, weights = _restricted(request.method, request.weights, list(conflicts))
    sides = [_read(objects, {p: getattr(d, side) for p, d in conflicts.items()}) for side in _SIDES]
    base = None
    if request.method.needs_base:  # whether this part of it does or not: `keep` takes it
        base = _read(objects, {path: d.base for path, d in conflicts.items()})
    merged = merging.merge(sides, method=method, base=base, key=request.key, weights=weights)
    del sides, base
    paths = tuple(merged)
    leaves = tuple(_like(conflicts[path].ours.spec, merged.pop(path)) for path in paths)
    manifest = stage(tree.Node("dict", paths, leaves), objects)
    return dict(zip(paths, manifest.root.children, strict=True))


def _restricted(
    method: "merging.MergeMethod", weights: Any, paths: list[str]
) -> "tuple[merging.MergeMethod, Any]":
    """The rules of a method, and the weights, that are for any of these leaves."""

    def concerns(glob: str) -> bool:
        expression = tree.pattern(glob)
        return any(expression.match(path) for path in paths)

    if method.rules:
        method = replace(method, rules=tuple(rule for rule in method.rules if concerns(rule[0])))
    if isinstance(weights, Mapping):
        weights = {glob: numbers for glob, numbers in weights.items() if concerns(glob)}
    return method, weights if method.weighted else None


def _like(spec: tree.LeafSpec, value: Any) -> tree.Leaf:
    """A merged leaf with the spec (home, dtype, Variable type) of our side."""
    return tree.Leaf(spec, np.asarray(value).astype(tree.storage_dtype(spec.dtype), copy=False))


def _read(objects: ObjectStore, entries: Mapping[str, LeafEntry]) -> dict[str, Any]:
    return {path: _widened(leaf.data) for path, leaf in read_leaves(objects, entries)}


def _widened(array: Any) -> Any:
    """An array in float32 or complex64 if it is of a narrow dtype that JAX has no arrays of."""
    if array.dtype.kind == "W":
        return array.astype(np.complex64)
    return array.astype(np.float32) if array.dtype.name in NO_JAX_ARRAYS else array


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
    left = [d for path, d in plan.conflicts.items() if path not in settled]
    if left:
        raise ConflictError(
            f"{' and '.join(names)} changed {len(left)} {'leaf' if len(left) == 1 else 'leaves'} "
            "differently:",
            paths=[f"{d.path}: {_explain(d)}" for d in left],
            hint=_advice(left),
        )


def _advice(left: Sequence[Decision]) -> str:
    """How conflicts can be settled: numbers by a method, all others by taking one side."""
    verdicts = {decision.verdict for decision in left}
    advice = []
    if "conflict" in verdicts:
        advice.append(
            "merge their numbers with method=vcjax.merging.average() (CLI: --method=average), "
            "or take one side with resolve='ours' or 'theirs' (CLI: --resolve=ours)"
        )
    if "structure" in verdicts:
        those = " of those that no method can merge" if "conflict" in verdicts else ""
        advice.append(
            f"take one side{those} with resolve={{path: 'ours'}} (CLI: --rule='PATH=ours')"
        )
    return "; ".join(advice)
