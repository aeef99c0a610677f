"""Merging commits: find the base, plan from manifests, let a method settle the conflicts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
from vcjax.merging.inputs import check_complex, check_globs, check_inputs
from vcjax.objects import ObjectStore
from vcjax.repo.committing import Change, digest_lookup
from vcjax.repo.conflicts import Undecided, advice, chosen_sides, explain, refuse
from vcjax.repo.jobs import Job
from vcjax.repo.merging_models import listed, run_into_store, weights_of
from vcjax.repo.models import stored_leaf
from vcjax.repo.outputs import StoreOutput, fingerprint


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
    progress: Callable[[int, int], None] | None = None
    stored: list[StoreOutput] = field(default_factory=list)


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
                "weights": checked_metadata(listed(request.weights), "weights"),
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
        root = plan.resolved(dict.fromkeys(plan.conflicts, Undecided()))
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
            paths=[f"{d.path}: {explain(d)}" for d in stuck],
            hint=advice(stuck),
        )
    lacking = [path for path, d in conflicts.items() if not isinstance(d.base, LeafEntry)]
    if method.needs_base and lacking:
        raise MergeError(
            f"{method.name} needs a base, and there is none for {', '.join(lacking)}",
            hint="use a method that needs none, such as average()",
        )
    check_inputs(method, len(_SIDES), method.needs_base, request.weights, None, request.key)
    check_globs(method, request.weights, list(conflicts))
    jobs = [_job(path, decision, request, objects) for path, decision in conflicts.items()]
    what = fingerprint(
        sides=[request.ours.tree, request.theirs.tree],
        leaves=[(path, d.ours.digest, d.theirs.digest) for path, d in conflicts.items()],
        base=[getattr(d.base, "digest", None) for d in conflicts.values()],
        method=merging.to_config(method),
        weights=listed(request.weights),
        key=repr(request.key),
    )
    output = run_into_store(jobs, objects, what, request.key, request.progress)
    request.stored.append(output)
    return output.finish()


_SIDES = ("ours", "theirs")


def _job(path: str, decision: Decision, request: MergeRequest, objects: ObjectStore) -> Job:
    """A conflict as a job; the result has the spec (home, dtype, Variable type) of our side."""
    assert request.method is not None
    base = None
    if request.method.needs_base:  # whether this part of it does or not: `keep` takes it
        base = stored_leaf(path, decision.base, objects)
    job = Job(
        path,
        decision.ours.spec,
        tuple(stored_leaf(path, getattr(decision, side), objects) for side in _SIDES),
        base,
        request.method.for_leaf(path),
        weights_of(request.weights, path, len(_SIDES)),
    )
    check_complex(job.method, path, [leaf.data for leaf in job.leaves])
    return job


def _takes_first(decision: Decision) -> bool:
    """Whether a conflict is between leaves of a kind that no method averages.

    The rule is that of `vcjax.merge`: step counters, PRNG keys, masks and text
    have no mean, and are taken from the first side.
    """
    if decision.verdict != "conflict":
        return False
    spec = decision.ours.spec
    return spec.is_value or not tree.is_inexact(spec.dtype)
