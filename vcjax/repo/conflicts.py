"""Conflicts of a three-way merge: which a side settles, and what is said of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcjax import tree
from vcjax.errors import ConflictError, MergeError
from vcjax.merging import ABSENT, Decision, MergePlan


@dataclass(frozen=True)
class Undecided:
    """What stands for the base where several bases disagree: equal to nothing."""

    digest: str = ""  # which no stored leaf has
    spec: Any = None


def explain(decision: Decision) -> str:
    """What either side made of a leaf, in words."""
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
    return isinstance(node, Undecided)


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
            paths=[f"{d.path}: {explain(d)}" for d in left],
            hint=advice(left),
        )


def advice(left: Sequence[Decision]) -> str:
    """How conflicts can be settled: numbers by a method, all others by taking one side."""
    verdicts = {decision.verdict for decision in left}
    words = []
    if "conflict" in verdicts:
        words.append(
            "merge their numbers with method=vcjax.merging.average() (CLI: --method=average), "
            "or take one side with resolve='ours' or 'theirs' (CLI: --resolve=ours)"
        )
    if "structure" in verdicts:
        those = " of those that no method can merge" if "conflict" in verdicts else ""
        words.append(
            f"take one side{those} with resolve={{path: 'ours'}} (CLI: --rule='PATH=ours')"
        )
    return "; ".join(words)
