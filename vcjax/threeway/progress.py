"""Merges under way: where one stands, and what further decisions make of it. Needs no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vcjax import merging
from vcjax.errors import ConflictError, listing
from vcjax.history import History, MergeState, Ref, is_ancestor
from vcjax.merging.config import record_of_key, record_of_weights
from vcjax.threeway import Decision, MergePlan
from vcjax.threeway.commit_plan import plan_commits
from vcjax.threeway.rules import (
    Rules,
    as_pairs,
    check_rules,
    chosen_sides,
    left_to_method,
    side_names,
)

if TYPE_CHECKING:
    from vcjax.threeway.request import MergeRequest


@dataclass(frozen=True)
class MergeProgress:
    """Where a merge under way stands.

    Attributes:
        state: what was decided.
        plan: of the merge.
        settled: {path of a conflict: what settles it}: "ours", "theirs", the name of
            another side, "base", or the name of the method.
        tip: digest of the commit that the branch is at now; None if it is gone.
    """

    state: MergeState
    plan: MergePlan
    settled: dict[str, str]
    tip: str | None

    @property
    def left(self) -> dict[str, Decision]:
        """{path: decision} of the conflicts that nobody has settled."""
        conflicts = self.plan.conflicts
        return {path: d for path, d in conflicts.items() if path not in self.settled}

    @property
    def has_moved(self) -> bool:
        """Whether the branch is not where it was when the merge began."""
        return self.tip != self.state.ours

    @property
    def sides(self) -> tuple[str, ...]:
        """What rules call the sides."""
        return side_names(self.state.names)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "branch": self.state.short,
            "names": list(self.state.names),
            "inputs": list(self.state.commits),
            "moved": self.has_moved,
            "settled": dict(self.settled),
            "conflicts": list(self.left),
        }


def progress_of(state: MergeState, history: History, ref: Ref | None) -> MergeProgress:
    """Where a merge under way stands.

    Args:
        state: of the merge.
        history: the commits.
        ref: that it moves, as it is now.
    """
    plan, _ = plan_commits(history, [history.commit(digest) for digest in state.commits])
    sides = side_names(state.names)
    settled = {
        path: sides[choice.sides[0]] if choice.sides else "base"
        for path, choice in chosen_sides(plan, state.rules, state.names).items()
    }
    if state.method is not None:
        name = str(state.method["name"])
        conflicts = plan.conflicts
        wanted = left_to_method(plan, state.rules)
        settled |= {path: name for path in wanted if conflicts[path].verdict == "conflict"}
    return MergeProgress(state, plan, settled, ref.commit if ref else None)


def decided(
    state: MergeState,
    resolve: Rules | None,
    method: Mapping[str, Any] | None,
    weights: Any,
    key: Any,
    **details: Any,
) -> MergeState:
    """The state after further decisions.

    Later rules for paths go before earlier ones; a side or a method for everything goes
    after all, since it is about what is left.

    Raises:
        MergeError: a side that the merge does not have.
    """
    new = check_rules(resolve, state.names)
    paths = tuple(rule for rule in new if rule[0] != "**")
    rest = tuple(rule for rule in new if rule[0] == "**")
    former = tuple(rule for rule in state.rules if rule[0] not in dict(new))
    leaves_some, left_some = ("method" in dict(rules).values() for rules in (new, state.rules))
    had_all = state.method is not None and not left_some
    if (method is not None and not leaves_some) or (had_all and leaves_some):
        rest = (*rest, ("**", "method"))
    if method is not None:
        state = replace(state, method=method, weights=None)  # which were for another one
    given = {"weights": weights, "key": key, **details}
    given = {name: value for name, value in given.items() if value is not None}
    return replace(state, rules=(*paths, *former, *rest), **given)


def check_unmoved(state: MergeState, tip: str | None) -> None:
    """Raises if the branch has moved since a merge began.

    Raises:
        ConflictError: says from where to where.
    """
    if tip == state.ours:
        return
    where = f"to {tip[:8]}" if tip else "and is gone"
    raise ConflictError(
        f"{state.short!r} has moved {where} since the merge of {listing(state.names[1:])} "
        f"began at {state.ours[:8]}",
        hint="plan anew from there and keep what was decided with "
        "`vcjax merge --continue --replan` (`continue_merge(replan=True)`), or drop the merge "
        "with `vcjax merge --abort`; nothing was merged yet",
    )


def is_done(state: MergeState, tip: str | None, history: History) -> bool:
    """Whether a branch contains all sides already: the process died after it was moved."""
    return tip is not None and all(
        is_ancestor(digest, tip, history.commit) for digest in state.commits
    )


def state_of(request: "MergeRequest", target: str) -> MergeState:
    """What is taken down of a merge that has conflicts left."""
    ours, *theirs = (side.digest for side in request.sides)
    return MergeState(
        target=target,
        ours=ours,
        theirs=tuple(theirs),
        names=request.names,
        rules=as_pairs(request.resolve),
        method=None if request.method is None else merging.to_config(request.method),
        weights=record_of_weights(request.weights),
        key=record_of_key(request.key),
        message=request.message,
        author=request.author,
        metadata=request.metadata,
        metrics=request.metrics,
    )
