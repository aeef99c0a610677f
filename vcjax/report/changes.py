"""Diffs and merge plans as text."""

import math
from collections.abc import Mapping

from vcjax.diffing import LeafChange, TreeDiff
from vcjax.merging import MergePlan
from vcjax.report.figures import format_number, format_percent
from vcjax.report.lines import Line, Span, line
from vcjax.report.table import Column, table

MARKS = {"added": "+", "removed": "-", "changed": "~", "moved": ">"}
STYLES = {"added": "green", "removed": "red", "changed": "yellow", "moved": "cyan"}

BAR = 40
"""Length of the longest bar of `stat_lines`, characters."""

_FIGURES = (
    Column("relative", right=True),
    Column("l2", right=True),
    Column("max", right=True),
    Column("elements", right=True),
    Column("cosine", right=True),
)


def diff_lines(diff: TreeDiff) -> list[Line]:
    """Every leaf that is not unchanged, with its figures where there are any, and the counts."""
    changes = [change for change in diff.changes if change.status != "unchanged"]
    measured = any(change.stats is not None for change in changes)
    columns = [Column(), Column("leaf"), Column("change"), *(_FIGURES if measured else ())]
    rows: list[list[str | Span]] = []
    for change in changes:
        style = STYLES[change.status]
        row: list[str | Span] = [Span(MARKS[change.status], style), Span(change.path, style)]
        rows.append([*row, change.describe(), *(_figures(change) if measured else ())])
    return [*(table(columns, rows) if rows else ()), *_structure(diff), line(summary(diff))]


def _figures(change: LeafChange) -> list[str]:
    if change.stats is None:
        return [""] * len(_FIGURES)
    stats = change.stats
    return [
        format_percent(stats["relative_l2"]),
        format_number(stats["l2"]),
        format_number(stats["max_abs"]),
        format_percent(stats["fraction_changed"]),
        format_number(stats["cosine"]),
    ]


def stat_lines(diff: TreeDiff) -> list[Line]:
    """Every leaf that is not unchanged with a bar for its relative change, and the counts."""
    changes = [change for change in diff.changes if change.status != "unchanged"]
    sizes = [_relative(change) for change in changes]
    top = max((size for size in sizes if math.isfinite(size)), default=0.0)
    rows: list[list[str | Span]] = []
    for change, size in zip(changes, sizes, strict=True):
        style = STYLES[change.status]
        measured = change.stats is not None
        share = 1.0 if not math.isfinite(size) else size / top if top else 0.0
        bar = "~" * math.ceil(BAR * share) if measured else change.status
        amount = format_percent(size) if measured else ""
        rows.append([Span(MARKS[change.status], style), change.path, amount, Span(bar, style)])
    columns = [Column(), Column(), Column(right=True), Column()]
    return [*table(columns, rows), *_structure(diff), line(summary(diff))]


def _relative(change: LeafChange) -> float:
    return change.stats["relative_l2"] if change.stats is not None else 0.0


def _structure(diff: TreeDiff) -> list[Line]:
    return [
        line(Span(f"!  {path or '(root)'}", "magenta"), "  another kind of container")
        for path in diff.structure
    ]


def summary(diff: TreeDiff) -> str:
    """The counts in a line: "1 changed, 3 unchanged"."""
    return ", ".join(f"{n:,} {status}" for status, n in diff.counts.items() if n) or "no leaves"


def merge_plan_lines(plan: MergePlan, settled: Mapping[str, str]) -> list[Line]:
    """What a merge does to every leaf or subtree that is not unchanged, and the counts.

    Args:
        plan: the plan.
        settled: {path of a conflict: what settles it}; conflicts that are no key are open.
    """
    rows: list[list[str | Span]] = []
    for decision in plan.decisions:
        if decision.verdict == "unchanged":
            continue
        outcome = Span(decision.verdict)
        if decision.is_conflict:
            how = settled.get(decision.path)
            outcome = Span(f"{decision.verdict}, settled by {how}", "yellow")
            if how is None:
                outcome = Span(f"{decision.verdict}, open", "bold red")
        rows.append([decision.path or "(root)", outcome])
    counts = ", ".join(f"{n:,} {verdict}" for verdict, n in plan.counts.items()) or "no leaves"
    return [*table([Column("leaf"), Column("taken from")], rows), line(counts)]
