"""Three-way diffs and similarities of many models as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from vcjax.diffing import Similarity, ThreeWay
from vcjax.report.figures import format_number, format_percent
from vcjax.report.lines import Line, Span, line
from vcjax.report.table import Column, table

MARKS = {"ours": "<", "theirs": ">", "same": "=", "both": "!"}
STYLES = {"ours": "green", "theirs": "cyan", "same": "", "both": "yellow"}

AGREEMENT = {
    "cosine": format_number,
    "sign_agreement": format_percent,
    "overlap": format_percent,
    "norm_ours": format_number,
    "norm_theirs": format_number,
}
"""{figure of two task vectors: how it is written}."""

HEADINGS = ("cosine", "same sign", "overlap", "|ours|", "|theirs|")


def agreement_cells(stats: Mapping[str, Any] | None) -> list[str]:
    """The figures of two task vectors, in the order of `HEADINGS`; blanks without."""
    if stats is None:
        return [""] * len(AGREEMENT)
    return [write(float(stats[name])) for name, write in AGREEMENT.items()]


def verdicts(three: ThreeWay) -> str:
    """The counts in a line: "3 ours, 2 theirs, 1 both, 9 unchanged"."""
    order = ("ours", "theirs", "same", "both", "unchanged")
    counts = three.counts
    return ", ".join(f"{counts[v]:,} {v}" for v in order if counts[v]) or "no leaves"


def agreement_line(three: ThreeWay) -> str | None:
    """How far the two sides agree where both changed something; None without figures."""
    if three.stats is None:
        return None
    cells = zip(HEADINGS, agreement_cells(three.stats), strict=True)
    return "where both changed: " + ", ".join(f"{name} {text}" for name, text in cells)


def fates(three: ThreeWay) -> dict[str, tuple[str, str]]:
    """{leaf path: what ours and theirs did to it}, with values that are small.

    Such as: "changed 91 → 101".
    """
    values = [
        {change.old_path or change.path: change.transition() for change in side.changes}
        for side in (three.ours, three.theirs)
    ]
    return {
        leaf.path: (
            f"{leaf.ours} {values[0].get(leaf.path, '')}".rstrip(),
            f"{leaf.theirs} {values[1].get(leaf.path, '')}".rstrip(),
        )
        for leaf in three.leaves
    }


def three_way_lines(three: ThreeWay) -> list[Line]:
    """Every leaf that a side changed, how far the sides agree, and the counts."""
    measured = any(leaf.stats is not None for leaf in three.leaves)
    columns = [Column(), Column("leaf"), Column("ours"), Column("theirs")]
    columns += [Column(name, right=True) for name in HEADINGS] if measured else []
    rows: list[list[str | Span]] = []
    words = fates(three)
    for leaf in three.leaves:
        if leaf.verdict == "unchanged":
            continue
        style = STYLES[leaf.verdict]
        row: list[str | Span] = [Span(MARKS[leaf.verdict], style), Span(leaf.path, style)]
        row += [*words[leaf.path], *(agreement_cells(leaf.stats) if measured else ())]
        rows.append(row)
    total = agreement_line(three)
    ends = [line(verdicts(three)), *([] if total is None else [line(total)])]
    return [*(table(columns, rows) if rows else ()), *ends]


def similarity_lines(
    found: Similarity, measure: str, base: str, same: Sequence[str] = ()
) -> list[Line]:
    """A matrix over the models, and the norms of their task vectors.

    Args:
        found: the similarities.
        measure: "cosine", "sign_agreement" or "overlap".
        base: what the base is called.
        same: names of models that are the base itself: they changed nothing.
    """
    values: Sequence[Sequence[float]] = getattr(found, measure)
    columns = [Column(measure.replace("_", " ")), Column("norm", right=True)]
    columns += [Column(name, right=True) for name in found.names]
    rows = [
        [Span(name, "bold"), format_number(norm), *(f"{value:.3f}" for value in row)]
        for name, norm, row in zip(found.names, found.norms, values, strict=True)
    ]
    left = f", {len(found.skipped):,} leaves that differ in shape or kind left out"
    end = f"{found.leaves:,} leaves{left if found.skipped else ''}"
    notes = [line(f"{name} is the base itself, so its figures are 0") for name in same]
    return [*table(columns, rows), *notes, line(f"{end}, against the base {base}")]
