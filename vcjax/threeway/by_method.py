"""Conflicts that a merge method settles: as jobs of the streaming executor, and their results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vcjax import merging
from vcjax.errors import ConflictError, MergeError
from vcjax.history import LeafEntry, MergeRequest
from vcjax.merging import MergeMethod
from vcjax.merging.config import as_method
from vcjax.merging.inputs import (
    check_complex,
    check_count,
    check_globs,
    check_needs,
    host_weights,
)
from vcjax.merging.records import key_of_record, weights_of_record
from vcjax.objects import ObjectStore
from vcjax.streaming.destination import fingerprint, run_into_store, unrepeatable
from vcjax.streaming.job import Job
from vcjax.streaming.model import stored_leaf
from vcjax.threeway import Decision
from vcjax.threeway.rules import Choice, advice, explain, shell_advice, side_names
from vcjax.threeway.settle import Settled


class Jobs(NamedTuple):
    """What is to be merged.

    Attributes:
        jobs: one per leaf.
        taken: {leaf path: places of the sides that it is merged from}.
        method: the record of what merges them.
        what: 64 hex digits that change with anything that changes the result.
    """

    jobs: list[Job]
    taken: dict[str, tuple[int, ...]]
    method: dict[str, Any]
    what: str

    def choices(self, entries: Mapping[str, LeafEntry]) -> dict[str, Choice]:
        """Merged leaves, by leaf path, as what settles their conflicts."""
        return {path: Choice(entry, self.taken[path]) for path, entry in entries.items()}


def into_store(
    conflicts: Mapping[str, Decision],
    request: MergeRequest,
    objects: ObjectStore,
    progress: Callable[[int, int], None] | None = None,
    method: "MergeMethod | str | Mapping[str, Any] | None" = None,
) -> Settled:
    """Settles conflicts by the method of a request, and stores the leaves.

    If the process is killed, the same merge goes on where it was.

    Args:
        conflicts: by leaf path.
        request: with a method.
        objects: where leaves are read and written.
        progress: called with the bytes that were read so far, and of all.
        method: that of the request, where it is at hand and need not be made anew.

    Raises:
        ConflictError: a conflict is not one of numbers.
        MergeError: the method cannot settle it.
    """
    plan = plan_jobs(conflicts, request, objects, as_method(method))
    key = key_of_record(request.key)
    output = run_into_store(plan.jobs, objects, plan.what, key, progress)
    return Settled(plan.choices(output.finish()), plan.method, output)


def plan_jobs(
    conflicts: Mapping[str, Decision],
    request: MergeRequest,
    objects: ObjectStore,
    method: MergeMethod | None = None,
) -> Jobs:
    """What has to be merged for the method of a request to settle conflicts.

    A leaf is merged from the sides that changed it; by a method that looks at whole
    models, from all sides.

    Args:
        conflicts: by leaf path.
        request: with a method.
        objects: where the leaves are read.
        method: that of the request; made from its record by default.

    Raises:
        ConflictError: a conflict is not one of numbers.
        MergeError: the method cannot settle it.
    """
    method = method or as_method(request.method)
    assert method is not None
    stuck = [d for d in conflicts.values() if d.verdict != "conflict"]
    if stuck:
        sides = side_names(request.names)
        raise ConflictError(
            "these conflicts cannot be settled by a merge method:",
            paths=[f"{d.path}: {explain(d, sides)}" for d in stuck],
            hint=advice(stuck),
            shell_hint=shell_advice(stuck),
        )
    lacking = [path for path, d in conflicts.items() if not isinstance(d.base, LeafEntry)]
    if method.needs_base and lacking:
        raise MergeError(
            f"{method.name} needs a base, and there is none for {', '.join(lacking)}",
            hint="use a method that needs none, such as average()",
        )
    weights, key = weights_of_record(request.weights), key_of_record(request.key)
    models = len(request.commits)
    check_needs(method, method.needs_base, weights, None, key)
    check_globs(method, weights, list(conflicts))
    taken = {path: _participants(path, d, method) for path, d in conflicts.items()}
    jobs = [
        _job(path, d, taken[path], method, host_weights(weights, path, models), objects)
        for path, d in conflicts.items()
    ]
    record = merging.to_config(method)
    what = fingerprint(
        sides=models,
        leaves=[
            (path, taken[path], [d.sides[at].digest for at in taken[path]])
            for path, d in conflicts.items()
        ],
        base=[getattr(d.base, "digest", None) for d in conflicts.values()],
        method=record,
        weights=request.weights,
        key=request.key,
        **unrepeatable(method),
    )
    return Jobs(jobs, taken, record, what)


def _participants(path: str, decision: Decision, method: MergeMethod) -> tuple[int, ...]:
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
    changed = f", and {len(sides)} sides changed {path!r}"
    check_count(method.for_leaf(path), len(sides), changed, path=path)
    return sides


def _job(
    path: str,
    decision: Decision,
    sides: Sequence[int],
    method: MergeMethod,
    weights: Sequence[float],
    objects: ObjectStore,
) -> Job:
    """A conflict as a job; the result has the spec (home, Variable type) of the first side."""
    base = None
    if method.needs_base:  # whether this part of it does or not: `keep` takes it
        base = stored_leaf(path, decision.base, objects)
    job = Job(
        path,
        decision.sides[sides[0]].spec,
        tuple(stored_leaf(path, decision.sides[at], objects) for at in sides),
        base,
        method.for_leaf(path),
        tuple(weights[at] for at in sides),
    )
    check_complex(job.method, path, [leaf.data for leaf in job.leaves])
    return job
