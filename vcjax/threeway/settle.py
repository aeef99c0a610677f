"""Merging commits: plan from manifests, let rules and a method settle the conflicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcjax import merging, tree
from vcjax.errors import ConflictError, MergeError, listing
from vcjax.history import Commit, History, LeafEntry, Manifest, checked_metadata, is_ancestor
from vcjax.history.commit import Change
from vcjax.merging.config import record_of_key, record_of_weights
from vcjax.merging.inputs import check_complex, check_globs, check_inputs, weights_of
from vcjax.objects import ObjectStore
from vcjax.streaming.destination import fingerprint
from vcjax.streaming.job import Job
from vcjax.streaming.merge import run_into_store
from vcjax.streaming.model import stored_leaf
from vcjax.threeway import Decision, MergePlan
from vcjax.threeway.commit_plan import kept_sides, plan_commits
from vcjax.threeway.request import MergeRequest
from vcjax.threeway.rules import (
    Choice,
    advice,
    as_pairs,
    chosen_sides,
    explain,
    left_to_method,
    refuse,
    side_names,
)


@dataclass(frozen=True)
class Outcome:
    """What a merge comes to.

    Attributes:
        root: of the merged tree.
        provenance: how it came about.
    """

    root: Any
    provenance: dict[str, Any]


def merge_commits(request: MergeRequest, history: History, objects: ObjectStore) -> Commit | Change:
    """The change that merges commits; a commit where one contains all others.

    Raises:
        ConflictError: conflicts are left that nothing settles.
    """
    kept = kept_sides(history, request.sides)
    ours = request.sides[0]
    if len(kept) == 1:
        return ours
    if len(kept) == 2:
        other = request.sides[kept[1]]
        if is_ancestor(ours.digest, other.digest, history.commit):
            return other
    request = request.among(kept)
    outcome = settle(request, history, objects)
    return Change(
        manifest=Manifest(outcome.root),
        message=request.message or f"Merge {listing(request.names[1:])} into {request.names[0]}",
        author=request.author,
        metadata=dict(request.metadata),
        metrics=dict(request.metrics),
        provenance=checked_metadata(outcome.provenance, "provenance"),
        extra_parents=tuple(side.digest for side in request.sides[1:]),
        reason="merge",
    )


def settle(request: MergeRequest, history: History, objects: ObjectStore) -> Outcome:
    """Plans a merge of commits of which none contains another, and settles its conflicts.

    Raises:
        ConflictError: conflicts are left that nothing settles.
    """
    plan, bases = plan_commits(history, request.sides)
    settled = chosen_sides(plan, request.resolve, request.names)
    how = dict.fromkeys(settled, "side")
    if request.method is not None:
        wanted = {path: plan.conflicts[path] for path in left_to_method(plan, request.resolve)}
        first = {
            path: Choice(decision.sides[decision.changed[0]], decision.changed[:1])
            for path, decision in wanted.items()
            if _takes_first(decision)
        }
        rest = {path: decision for path, decision in wanted.items() if path not in first}
        merged = from_method(rest, request, objects) if rest else {}
        settled |= first | merged
        how |= dict.fromkeys(first, "first") | dict.fromkeys(merged, "method")
    refuse(plan, settled, request.names)
    provenance = {
        "operation": "merge",
        "inputs": [side.digest for side in request.sides],
        "names": list(request.names),
        "bases": bases,
        "rules": [list(rule) for rule in as_pairs(request.resolve)],
        "method": merging.to_config(request.method) if request.method else None,
        "weights": record_of_weights(request.weights),
        "key": record_of_key(request.key),
        "decisions": {
            d.path: how.get(d.path, d.verdict) for d in plan.decisions if d.verdict != "unchanged"
        },
        "sides": _sides_of(plan, settled),
    }
    return Outcome(plan.resolved({path: c.node for path, c in settled.items()}), provenance)


def _sides_of(plan: MergePlan, settled: Mapping[str, Choice]) -> dict[str, list[int]]:
    """The sides that leaves are from, where the word for the decision does not say it."""
    found = {path: list(choice.sides) for path, choice in settled.items()}
    for decision in plan.decisions:
        several = len(decision.sides) > 2 and decision.verdict in ("theirs", "same")
        if several and decision.path not in found:
            found[decision.path] = list(decision.changed)
    return found


def from_method(
    conflicts: Mapping[str, Decision], request: MergeRequest, objects: ObjectStore
) -> dict[str, Choice]:
    """What a merge method makes of the conflicting leaves, stored.

    A leaf is merged from the sides that changed it; by a method that looks at whole
    models, from all sides.

    Raises:
        ConflictError: a conflict is not one of numbers.
        MergeError: the method cannot settle it.
    """
    method = request.method
    assert method is not None
    stuck = [d for d in conflicts.values() if d.verdict != "conflict"]
    if stuck:
        sides = side_names(request.names)
        raise ConflictError(
            "these conflicts cannot be settled by a merge method:",
            paths=[f"{d.path}: {explain(d, sides)}" for d in stuck],
            hint=advice(stuck),
        )
    lacking = [path for path, d in conflicts.items() if not isinstance(d.base, LeafEntry)]
    if method.needs_base and lacking:
        raise MergeError(
            f"{method.name} needs a base, and there is none for {', '.join(lacking)}",
            hint="use a method that needs none, such as average()",
        )
    fewest, most = method.models
    count = max(fewest, min(len(request.sides), most or len(request.sides)))  # leaf by leaf below
    check_inputs(method, count, method.needs_base, request.weights, None, request.key)
    check_globs(method, request.weights, list(conflicts))
    taken = {path: _participants(path, d, method) for path, d in conflicts.items()}
    jobs = [_job(path, d, taken[path], request, objects) for path, d in conflicts.items()]
    what = fingerprint(
        sides=[side.tree for side in request.sides],
        leaves=[
            (path, [d.sides[at].digest for at in taken[path]]) for path, d in conflicts.items()
        ],
        base=[getattr(d.base, "digest", None) for d in conflicts.values()],
        method=merging.to_config(method),
        weights=record_of_weights(request.weights),
        key=record_of_key(request.key),
    )
    if request.run is not None:
        entries = request.run(jobs, what)
    else:
        output = run_into_store(jobs, objects, what, request.key, request.progress)
        request.stored.append(output)
        entries = output.finish()
    return {path: Choice(entry, taken[path]) for path, entry in entries.items()}


def _participants(path: str, decision: Decision, method: "merging.MergeMethod") -> tuple[int, ...]:
    """The sides that a leaf is merged from, by their places.

    Raises:
        MergeError: the method takes another number of models.
    """
    sides = decision.changed
    if method.locality == "model" and len(sides) < len(decision.sides):
        spec = decision.sides[sides[0]].spec
        for at, node in enumerate(decision.sides):
            if not isinstance(node, LeafEntry) or node.spec.shape != spec.shape:
                raise MergeError(
                    f"{method.name} looks at whole models, and side {at + 1} lacks {path!r}",
                    hint="merge two at a time, or use a method that works leaf by leaf",
                    path=path,
                )
        sides = tuple(range(len(decision.sides)))
    fewest, most = method.for_leaf(path).models
    if len(sides) < fewest or (most is not None and len(sides) > most):
        limit = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
        raise MergeError(
            f"{method.for_leaf(path).name} takes {limit} model{'s' * (fewest != 1)}, and "
            f"{len(sides)} sides changed {path!r}",
            hint="merge two at a time, or settle this leaf by a rule",
            path=path,
        )
    return sides


def _job(
    path: str,
    decision: Decision,
    sides: Sequence[int],
    request: MergeRequest,
    objects: ObjectStore,
) -> Job:
    """A conflict as a job; the result has the spec (home, Variable type) of the first side."""
    assert request.method is not None
    base = None
    if request.method.needs_base:  # whether this part of it does or not: `keep` takes it
        base = stored_leaf(path, decision.base, objects)
    weights = weights_of(request.weights, path, len(request.sides))
    job = Job(
        path,
        decision.sides[sides[0]].spec,
        tuple(stored_leaf(path, decision.sides[at], objects) for at in sides),
        base,
        request.method.for_leaf(path),
        tuple(weights[at] for at in sides),
    )
    check_complex(job.method, path, [leaf.data for leaf in job.leaves])
    return job


def _takes_first(decision: Decision) -> bool:
    """Whether a conflict is between leaves of a kind that no method averages.

    The rule is that of `vcjax.merge`: step counters, PRNG keys, masks and text
    have no mean, and are taken from the first side that changed them.
    """
    if decision.verdict != "conflict":
        return False
    spec = decision.sides[decision.changed[0]].spec
    return spec.is_value or not tree.is_inexact(spec.dtype)
