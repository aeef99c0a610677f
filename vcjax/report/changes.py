"""Diffs and merge plans as text."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vcjax.diffing import LeafChange, TreeDiff
from vcjax.report.figures import format_number, format_percent
from vcjax.report.lines import Line, Span, line
from vcjax.report.table import Column, table
from vcjax.threeway import MergePlan

MARKS = {"added": "+", "removed": "-", "changed": "~", "moved": ">", "unchanged": "="}
STYLES = {"added": "green", "removed": "red", "changed": "yellow", "moved": "cyan", "unchanged": ""}

BAR = 40
"""Length of the longest bar of `stat_lines`, characters."""

MODULE_BAR = 20
"""The same of `module_lines`."""

_FIGURES = (
    Column("relative", right=True),
    Column("l2", right=True),
    Column("max", right=True),
    Column("elements", right=True),
    Column("cosine", right=True),
)


ORDERS: Mapping[str, str | None] = {
    "tree": None,
    "path": None,
    "relative": "relative_l2",
    "l2": "l2",
    "max": "max_abs",
    "elements": "fraction_changed",
    "cosine": "cosine",
}
"""{what leaves may be sorted by: the figure, where it is one}."""


def arranged(
    diff: TreeDiff, sort: str = "tree", statuses: Collection[str] = ()
) -> list[LeafChange]:
    """The leaves of a diff that a report lists, in its order.

    Args:
        diff: the diff.
        sort: one of `ORDERS`. Figures go from the most to the least changed (the
            smallest cosine first); leaves without figures come last, and before them
            those of which this one is not known.
        statuses: only these; without any, all but unchanged.
    """
    chosen = [
        change
        for change in diff.changes
        if (change.status in statuses if statuses else change.status != "unchanged")
    ]
    if sort == "path":
        return sorted(chosen, key=lambda change: change.path)
    figure = ORDERS[sort]
    if figure is None:
        return chosen
    sign = 1 if sort == "cosine" else -1

    return sorted(chosen, key=lambda change: _rank(change.stats, figure, sign))


def _rank(stats: Mapping[str, Any] | None, figure: str, sign: int) -> tuple[int, float]:
    """A key that sorts by a figure: what has it, what has it not known, what has none."""
    if stats is None:
        return 2, 0.0
    return (1, 0.0) if stats[figure] is None else (0, sign * float(stats[figure]))


def most_changed(diff: TreeDiff) -> list[LeafChange]:
    """The leaves that are not unchanged, the most telling first.

    Those without figures (added, removed, of another kind) come first, then by
    relative change. What was 0 before has no such size and comes last.
    """

    def key(change: LeafChange) -> tuple[bool, float]:
        size = relative(change.stats)
        return change.stats is not None, -size if math.isfinite(size) else 1.0

    return sorted(arranged(diff), key=key)


def diff_lines(diff: TreeDiff, sort: str = "tree", statuses: Collection[str] = ()) -> list[Line]:
    """The leaves of a diff, with their figures where there are any, and the counts.

    Args:
        diff: the diff.
        sort: see `arranged`.
        statuses: likewise.
    """
    changes = arranged(diff, sort, statuses)
    measured = any(change.stats is not None for change in changes)
    columns = [Column(), Column("leaf"), Column("change"), *(_FIGURES if measured else ())]
    rows: list[list[str | Span]] = []
    for change in changes:
        style = STYLES[change.status]
        row: list[str | Span] = [Span(MARKS[change.status], style), Span(change.path, style)]
        rows.append([*row, change.describe(), *(_figures(change.stats) if measured else ())])
    return [*(table(columns, rows) if rows else ()), *_structure(diff), line(summary(diff))]


def _figures(stats: Mapping[str, Any] | None) -> list[str]:
    if stats is None:
        return [""] * len(_FIGURES)
    return [
        format_percent(stats["relative_l2"]),
        format_number(stats["l2"]),
        format_number(stats["max_abs"]),
        format_percent(stats["fraction_changed"]),
        format_number(stats["cosine"]),
    ]


def stat_lines(diff: TreeDiff, sort: str = "tree", statuses: Collection[str] = ()) -> list[Line]:
    """The leaves of a diff with a bar for the relative change of each, and the counts.

    Args:
        diff: the diff.
        sort: see `arranged`.
        statuses: likewise.
    """
    changes = arranged(diff, sort, statuses)
    sizes = [relative(change.stats) for change in changes]
    top = max((size for size in sizes if math.isfinite(size)), default=0.0)
    rows: list[list[str | Span]] = []
    for change, size in zip(changes, sizes, strict=True):
        style = STYLES[change.status]
        measured = change.stats is not None
        drawn = bar(size, top) if measured else change.status
        amount = format_percent(change.stats["relative_l2"]) if change.stats is not None else ""
        rows.append([Span(MARKS[change.status], style), change.path, amount, Span(drawn, style)])
    columns = [Column(), Column(), Column(right=True), Column()]
    return [*table(columns, rows), *_structure(diff), line(summary(diff))]


def module_lines(diff: TreeDiff, depth: int, sort: str = "tree") -> list[Line]:
    """The modules of a diff that are not unchanged, each with figures and a bar, and the counts.

    Args:
        diff: the diff.
        depth: how many parts of the leaf path make a module.
        sort: see `arranged`.
    """
    modules = [module for module in diff.rollup(depth) if set(module.counts) - {"unchanged"}]
    figure = ORDERS[sort]
    if sort == "path":
        modules.sort(key=lambda module: module.path)
    elif figure is not None:
        sign = 1 if sort == "cosine" else -1
        modules.sort(key=lambda module: _rank(module.stats, figure, sign))
    sizes = [relative(module.stats) for module in modules]
    top = max((size for size in sizes if math.isfinite(size)), default=0.0)
    rows: list[list[str | Span]] = []
    for module, size in zip(modules, sizes, strict=True):
        counts = ", ".join(f"{n:,} {status}" for status, n in module.counts.items())
        drawn = Span(bar(size, top, MODULE_BAR) if module.stats else "", STYLES["changed"])
        rows.append([module.path or "(root)", counts, *_figures(module.stats), drawn])
    columns = [Column("module"), Column("leaves"), *_FIGURES, Column()]
    return [*(table(columns, rows) if rows else ()), *_structure(diff), line(summary(diff))]


def bar(size: float, top: float, width: int = BAR, character: str = "~") -> str:
    """A bar for a size, as long as `width` for the largest; sizes beyond all bounds fill it.

    Example:
        >>> bar(1, 2, 10), bar(0, 2, 10), bar(1e-9, 2, 10)
        ('~~~~~', '', '~')
    """
    share = 1.0 if not math.isfinite(size) else min(1.0, size / top) if top else 0.0
    return character * math.ceil(width * share)


def relative(stats: Mapping[str, Any] | None) -> float:
    """|new − old| / |old| as the length of a bar; 0 where it is not known."""
    return 0.0 if stats is None or stats["relative_l2"] is None else float(stats["relative_l2"])


def _structure(diff: TreeDiff) -> list[Line]:
    """What no leaf shows: containers of another kind, and why there are no figures."""
    containers = [
        line(Span(f"!  {path or '(root)'}", "magenta"), "  another kind of container")
        for path in diff.structure
    ]
    return [*containers, *unread_lines(diff)]


def unread_lines(diff: TreeDiff) -> list[Line]:
    """Why a diff has no figures, a line for each side whose data are gone."""
    return [line(Span("no figures: ", "magenta"), reason) for reason in diff.unread]


def summary(diff: TreeDiff) -> str:
    """The counts in a line: "1 changed, 3 unchanged"."""
    return ", ".join(f"{n:,} {status}" for status, n in diff.counts.items() if n) or "no leaves"


def merge_plan_lines(
    plan: MergePlan, settled: Mapping[str, str], names: Sequence[str] = ()
) -> list[Line]:
    """What a merge does to every leaf or subtree that is not unchanged, and the counts.

    Args:
        plan: the plan.
        settled: {path of a conflict: what settles it}; conflicts that are no key are open.
        names: of the sides; of more than two they stand in the place of "theirs".
    """
    rows: list[list[str | Span]] = []
    for decision in plan.decisions:
        if decision.verdict == "unchanged":
            continue
        several = len(names) > 2 and decision.verdict == "theirs"
        outcome = Span(names[decision.changed[0]] if several else decision.verdict)
        if decision.is_conflict:
            how = settled.get(decision.path)
            outcome = Span(f"{decision.verdict}, settled by {how}", "yellow")
            if how is None:
                outcome = Span(f"{decision.verdict}, open", "bold red")
        rows.append([decision.path or "(root)", outcome])
    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in plan.counts.items()) or "no leaves"
    return [*table([Column("leaf"), Column("taken from")], rows), line(counts)]
