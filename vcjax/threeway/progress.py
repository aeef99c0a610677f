"""Merges under way: where one stands. Needs no JAX."""

from dataclasses import dataclass
from typing import Any

from vcjax.errors import ConflictError, listing
from vcjax.history import History, MergeRequest, Ref, is_ancestor
from vcjax.threeway import Decision, MergePlan
from vcjax.threeway.commit_plan import plan_commits
from vcjax.threeway.rules import chosen_sides, left_to_method, side_names


@dataclass(frozen=True)
class MergeProgress:
    """Where a merge under way stands.

    Attributes:
        request: what was asked and decided.
        plan: of the merge.
        settled: {path of a conflict: what settles it}: "ours", "theirs", the name of
            another side, "base", or the name of the method.
        tip: digest of the commit that the branch is at now; None if it is gone.
    """

    request: MergeRequest
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
        return self.tip != self.request.ours

    @property
    def sides(self) -> tuple[str, ...]:
        """What rules call the sides."""
        return side_names(self.request.names)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "branch": self.request.short,
            "names": list(self.request.names),
            "inputs": list(self.request.commits),
            "moved": self.has_moved,
            "settled": dict(self.settled),
            "conflicts": list(self.left),
        }


def progress_of(request: MergeRequest, history: History, ref: Ref | None) -> MergeProgress:
    """Where a merge under way stands.

    Args:
        request: of the merge.
        history: the commits.
        ref: that it moves, as it is now.
    """
    plan, _ = plan_commits(history, request.commits)
    sides = side_names(request.names)
    settled = {
        path: sides[choice.sides[0]] if choice.sides else "base"
        for path, choice in chosen_sides(plan, request.rules, request.names).items()
    }
    if request.method is not None:
        name = str(request.method["name"])
        conflicts = plan.conflicts
        wanted = left_to_method(plan, request.rules)
        settled |= {path: name for path in wanted if conflicts[path].verdict == "conflict"}
    return MergeProgress(request, plan, settled, ref.commit if ref else None)


def check_unmoved(request: MergeRequest, tip: str | None) -> None:
    """Raises if the branch has moved since a merge began.

    Raises:
        ConflictError: says from where to where.
    """
    if tip == request.ours:
        return
    where = f"to {tip[:8]}" if tip else "and is gone"
    raise ConflictError(
        f"{request.short!r} has moved {where} since the merge of {listing(request.names[1:])} "
        f"began at {request.ours[:8]}",
        hint="plan anew from there and keep what was decided with "
        "`repo.merges.resume(replan=True)`, or drop the merge with `repo.merges.abort()`; "
        "nothing was merged yet",
        shell_hint="plan anew from there and keep what was decided with "
        "`vcjax merge --continue --replan`, or drop the merge with `vcjax merge --abort`; "
        "nothing was merged yet",
    )


def is_done(request: MergeRequest, tip: str | None, history: History) -> bool:
    """Whether a branch contains all sides already: the process died after it was moved."""
    return tip is not None and all(
        is_ancestor(digest, tip, history.commit) for digest in request.commits
    )
