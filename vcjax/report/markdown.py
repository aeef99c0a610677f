"""A diff as Markdown, for a pull request."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vcjax.diffing import LeafChange, ModuleChange, ThreeWay, TreeDiff
from vcjax.report.changes import bar, most_changed, relative, summary
from vcjax.report.figures import format_number
from vcjax.report.lines import escaped
from vcjax.report.page import amount, headline
from vcjax.report.three_way import HEADINGS, agreement_cells, agreement_line, fates, verdicts

SHOWN = 20
"""Leaves that are listed at once; the others are folded away."""

MODULES = 40
"""Modules that are listed."""

FOLDED = 500
"""Leaves that are listed at all: what a hosting site still shows."""

_COLUMNS = ("leaf", "", "shape", "relative change", "", "l2", "cosine")


def markdown_report(diff: TreeDiff, *, title: str | None = None) -> str:
    """A diff as GitHub-flavoured Markdown; what `TreeDiff.to_markdown` gives.

    Args:
        diff: the diff.
        title: a heading to begin with.
    """
    lines = [f"## {_text(title)}", ""] if title else []
    lines += [f"**{summary(diff)}**", ""]
    lines += [" · ".join(f"{name} {value}" for name, value, _ in headline(diff)), ""]
    if diff.structure:
        paths = ", ".join(map(_code, diff.structure))
        lines += [f"Containers of another kind: {paths}", ""]
    for reason in diff.unread:
        lines += [_text(f"No figures: {reason}."), ""]
    if diff.three_way is not None:
        lines += [*_three_way(diff.three_way), ""]
    changes = most_changed(diff)
    if modules := _changed_modules(diff):
        lines += [*_modules(modules), ""]
    top = _largest(change.stats for change in changes)
    lines += _leaves(changes[:SHOWN], top)
    if changes[SHOWN:]:
        listed = changes[SHOWN:FOLDED]
        lines += ["", f"<details><summary>{len(listed):,} more leaves</summary>", ""]
        lines += [*_leaves(listed, top), "", "</details>"]
    if changes[FOLDED:]:
        lines += ["", f"{len(changes) - FOLDED:,} further leaves are not listed."]
    return "\n".join(lines).rstrip() + "\n"


def _three_way(three: ThreeWay) -> Iterable[str]:
    """What both sides changed; what one side did is counted."""
    yield f"Since their common base: {verdicts(three)}."
    if (total := agreement_line(three)) is not None:
        yield _text(f"Of the task vectors {total}.")
    both, words = three.with_verdict("both"), fates(three)
    if both:
        yield ""
        yield from _head(("changed by both", "ours", "theirs", *map(_text, HEADINGS)), "lllrrrrr")
    for leaf in both[:SHOWN]:
        yield _row(_code(leaf.path), *map(_text, words[leaf.path]), *agreement_cells(leaf.stats))
    if both[SHOWN:]:
        yield ""
        yield f"and {len(both) - SHOWN:,} more that both changed."


def _largest(figures: Iterable[Mapping[str, Any] | None]) -> float:
    return max(filter(math.isfinite, map(relative, figures)), default=0.0)


def _changed_modules(diff: TreeDiff) -> list[ModuleChange]:
    """The modules at the first depth that has several; none if that is too many."""
    for depth in range(1, 8):
        modules = diff.rollup(depth)
        if len(modules) > 1:
            found = [module for module in modules if set(module.counts) - {"unchanged"}]
            leaves = sum(sum(module.counts.values()) for module in found)
            return found if len(found) <= MODULES and len(found) < leaves else []
    return []


def _modules(modules: Sequence[ModuleChange]) -> Iterable[str]:
    yield from _head(("module", "leaves", "relative change", ""), "llrl")
    top = _largest(module.stats for module in modules)
    for module in modules:
        counts = ", ".join(f"{n:,} {status}" for status, n in module.counts.items())
        drawn = bar(relative(module.stats), top, 10, "█")
        yield _row(_code(module.path), counts, amount(module.stats), drawn)


def _leaves(changes: Sequence[LeafChange], top: float) -> list[str]:
    if not changes:
        return []
    rows = list(_head(_COLUMNS, "lllrlrr"))
    for change in changes:
        stats = change.stats
        figures = ("", "") if stats is None else (stats["l2"], stats["cosine"])
        rows.append(
            _row(
                _code(change.path),
                change.status,
                _text(change.describe()),
                amount(stats),
                bar(relative(stats), top, 10, "█"),
                *("" if value == "" else format_number(value) for value in figures),
            )
        )
    return rows


def _head(columns: Sequence[str], alignment: str) -> Iterable[str]:
    yield _row(*columns)
    yield _row(*(":--" if letter == "l" else "--:" for letter in alignment))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


_ESCAPES = str.maketrans(
    {**{c: f"\\{c}" for c in "\\`*_[]|#"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def _text(text: str) -> str:
    """Text that neither Markdown nor HTML takes for anything else."""
    return escaped(text).translate(_ESCAPES)


def _code(path: str) -> str:
    """A leaf path as code; backticks in it, and what ends a cell, are taken care of."""
    text = escaped(path or "(root)").replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in _runs(text)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _runs(text: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in text).split() if run]
