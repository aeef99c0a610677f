"""Merging commits: plan from manifests, let rules and a method settle the conflicts.

Needs JAX only where a method does the settling.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vcjax.errors import listing
from vcjax.history import Commit, History, Manifest, MergeRequest, is_ancestor
from vcjax.threeway import Decision, MergePlan
from vcjax.threeway.commit_plan import kept_sides, plan_commits
from vcjax.threeway.rules import Choice, chosen_sides, left_to_method, refuse, takes_first

if TYPE_CHECKING:
    from vcjax.streaming.destination import StoreOutput


class Settled(NamedTuple):
    """What a method makes of conflicts.

    Attributes:
        choices: by leaf path.
        method: its record, with all parameters, also those that nobody gave.
        stored: where the leaves were written, whose notes can go once a commit has them.
    """

    choices: dict[str, Choice]
    method: Mapping[str, Any]
    stored: "StoreOutput | None" = None


ByMethod = Callable[[Mapping[str, Decision], MergeRequest], Settled]
"""Settles conflicts by the method of a request."""


@dataclass(frozen=True)
class Outcome:
    """What a merge comes to.

    Attributes:
        request: that was answered: of the sides that bring something.
        manifest: of the merged tree.
        provenance: how it came about.
        stored: as in `Settled`.
    """

    request: MergeRequest
    manifest: Manifest
    provenance: dict[str, Any]
    stored: "StoreOutput | None"


def contained(request: MergeRequest, history: History) -> Commit | None:
    """The side that contains all others, if one does: ours, or what continues it."""
    ours = history.commit(request.ours)
    kept = kept_sides(history, request.commits)
    if len(kept) == 1:
        return ours
    if len(kept) == 2:
        other = history.commit(request.commits[kept[1]])
        if is_ancestor(ours.digest, other.digest, history.commit):
            return other
    return None


def settle(request: MergeRequest, history: History, by_method: ByMethod) -> Outcome:
    """Plans a merge of commits of which none contains all others, and settles its conflicts.

    Raises:
        ConflictError: conflicts are left that nothing settles.
    """
    request = request.among(kept_sides(history, request.commits))
    plan, bases = plan_commits(history, request.commits)
    settled = chosen_sides(plan, request.rules, request.names)
    how, stored = dict.fromkeys(settled, "side"), None
    if request.method is not None:
        wanted = {path: plan.conflicts[path] for path in left_to_method(plan, request.rules)}
        first = {
            path: Choice(decision.sides[decision.changed[0]], decision.changed[:1])
            for path, decision in wanted.items()
            if takes_first(decision)
        }
        rest = {path: decision for path, decision in wanted.items() if path not in first}
        merged = {}
        if rest:
            merged, method, stored = by_method(rest, request)
            request = replace(request, method=method)
        settled |= first | merged
        how |= dict.fromkeys(first, "first") | dict.fromkeys(merged, "method")
    refuse(plan, settled, request.names)
    decisions = {
        d.path: how.get(d.path, d.verdict) for d in plan.decisions if d.verdict != "unchanged"
    }
    provenance = {
        **request.provenance(),
        "bases": bases,
        "decisions": decisions,
        "sides": _sides_of(plan, settled),
    }
    root = plan.resolved({path: choice.node for path, choice in settled.items()})
    return Outcome(request, Manifest(root), provenance, stored)


def default_message(request: MergeRequest) -> str:
    """What a merge commit says if nobody said anything."""
    return f"Merge {listing(request.names[1:])} into {request.names[0]}"


def _sides_of(plan: MergePlan, settled: Mapping[str, Choice]) -> dict[str, list[int]]:
    """The sides that leaves are from, where the word for the decision does not say it."""
    found = {path: list(choice.sides) for path, choice in settled.items()}
    for decision in plan.decisions:
        several = len(decision.sides) > 2 and decision.verdict in ("theirs", "same")
        if several and decision.path not in found:
            found[decision.path] = list(decision.changed)
    return found
