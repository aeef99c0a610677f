"""Conflicts of a merge: which a side settles, and what is said of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcjax import tree
from vcjax.errors import ConflictError, MergeError, listing
from vcjax.threeway import ABSENT, Decision, MergePlan


@dataclass(frozen=True)
class Undecided:
    """What stands for the base where several bases disagree: equal to nothing."""

    digest: str = ""  # which no stored leaf has
    spec: Any = None


SIDES = ("ours", "theirs")
"""What the sides of a merge of two are called, whatever their names."""

Rules = Mapping[str, str] | Sequence[tuple[str, str]] | str
"""A side for all conflicts, or sides by leaf path glob, of which the first that matches counts."""


def side_names(names: Sequence[str]) -> tuple[str, ...]:
    """What rules and messages call the sides: of more than two, all but ours by their names."""
    return SIDES if len(names) <= 2 else ("ours", *names[1:])


def as_pairs(resolve: Rules | None) -> tuple[tuple[str, str], ...]:
    """Rules as (leaf path glob, side), in the order in which they count."""
    if isinstance(resolve, str):
        return (("**", resolve),)
    pairs = resolve.items() if isinstance(resolve, Mapping) else resolve or ()
    return tuple((str(glob), str(side)) for glob, side in pairs)


def explain(decision: Decision, sides: Sequence[str] = SIDES) -> str:
    """What each side made of a leaf, in words."""
    words = []
    for at in decision.changed:
        side, node = sides[at], decision.sides[at]
        if node is ABSENT:
            words.append(f"deleted in {side}")
        elif isinstance(node, tree.Node):
            words.append(f"{node.kind} in {side}")
        else:
            words.append(f"{node.spec} in {side}")
    return ", ".join(words)


@dataclass(frozen=True)
class Choice:
    """What settles a conflict.

    Attributes:
        node: what is taken: a manifest entry, a `Node`, or `ABSENT`.
        sides: places of the sides that it is from; none if it is the base's.
    """

    node: Any
    sides: tuple[int, ...]


def check_rules(resolve: Rules | None, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The rules as pairs.

    Raises:
        MergeError: a side that the merge does not have.
    """
    rules = as_pairs(resolve)
    sides = side_names(names)
    for _, side in rules:
        if side not in (*sides, "base", "method"):
            known = ", ".join(map(repr, (*sides, "base")))
            raise MergeError(f"{side!r} is no side of a merge", hint=f"use one of {known}")
    return rules


def chosen_sides(
    plan: MergePlan, resolve: Rules | None, names: Sequence[str] = SIDES
) -> dict[str, Choice]:
    """The conflicts that are settled by taking one side.

    Args:
        plan: of the merge.
        resolve: a side ("ours", "theirs" or the name of one of several, "base") for
            all conflicts, or by path glob. What is left to "method" is not among them.
        names: of all sides.

    Raises:
        MergeError: an unknown side, or no base to take.
    """
    rules = tree.FirstMatch(check_rules(resolve, names))
    sides = side_names(names)
    chosen = {}
    for path, decision in plan.conflicts.items():
        side = rules.find(path)
        if side == "base":
            chosen[path] = Choice(decision.base, ())
        elif side in sides:
            at = sides.index(side)
            chosen[path] = Choice(decision.sides[at], (at,))
    undecided = [path for path, choice in chosen.items() if _is_undecided(choice.node)]
    whole = chosen.get(plan.root.path) if isinstance(plan.root, Decision) else None
    if whole is not None and whole.node is ABSENT:
        undecided.append("the whole tree")
    if undecided:
        raise MergeError(
            f"there is no base to take for {', '.join(undecided)}",
            hint="take 'ours' or 'theirs': the histories have no common ancestor, "
            "or several that disagree",
        )
    return chosen


def left_to_method(plan: MergePlan, resolve: Rules | None) -> list[str]:
    """The conflicts that a method is to settle, if it can.

    Where rules leave some to "method", these; else all that no rule settles.
    """
    pairs = as_pairs(resolve)
    wanted = "method" if any(side == "method" for _, side in pairs) else None
    rules = tree.FirstMatch(pairs)
    return [path for path in plan.conflicts if rules.find(path) == wanted]


def has_base(decision: Decision) -> bool:
    """Whether a conflict can be settled by what the sides come from."""
    return not _is_undecided(decision.base)


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
            f"{listing(names)} changed {len(left)} {'leaf' if len(left) == 1 else 'leaves'} "
            "differently:",
            paths=[f"{d.path}: {explain(d, side_names(names))}" for d in left],
            hint=advice(left),
            shell_hint=shell_advice(left),
        )


def advice(left: Sequence[Decision]) -> str:
    """How conflicts can be settled: numbers by a method, all others by taking one side."""
    numbers = (
        "merge their numbers with method=vcjax.merging.average(), or take one side with "
        "resolve='ours' or 'theirs'"
    )
    return _by_verdict(left, numbers, "resolve={path: 'ours'}")


def shell_advice(left: Sequence[Decision]) -> str:
    """The same in the words of the command line."""
    numbers = "merge their numbers with --method=average, or take one side with --resolve=ours"
    return _by_verdict(left, numbers, "--rule='PATH=ours'")


def _by_verdict(left: Sequence[Decision], numbers: str, rule: str) -> str:
    verdicts = {decision.verdict for decision in left}
    words = [numbers] if "conflict" in verdicts else []
    if "structure" in verdicts:
        those = " of those that no method can merge" if "conflict" in verdicts else ""
        words.append(f"take one side{those} with {rule}")
    return "; ".join(words)


def takes_first(decision: Decision) -> bool:
    """Whether a conflict is between leaves of a kind that no method averages.

    The rule is that of `vcjax.merge`: step counters, PRNG keys, masks and text
    have no mean, and are taken from the first side that changed them.
    """
    if decision.verdict != "conflict":
        return False
    return not decision.sides[decision.changed[0]].spec.has_mean
