"""A diff as one HTML page that holds all it needs: it opens from disk and asks no network."""

import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from vcjax._version import __version__
from vcjax.diffing import LeafChange, ThreeWay, TreeDiff
from vcjax.report.documents import standard
from vcjax.report.figures import format_bytes, format_number, format_percent
from vcjax.report.heat import heat_map
from vcjax.report.three_way import HEADINGS, agreement_cells, agreement_line, fates, verdicts

DIGITS = 6
"""Significant digits of the numbers in the page: more would make it larger and show nothing."""

MODULE_FIGURES = ("l2", "relative_l2", "max_abs", "fraction_changed", "cosine", "sign_flips")


@cache
def templates() -> jinja2.Environment:
    """The templates of this package, with autoescaping."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vcjax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def html_page(
    diff: TreeDiff, *, title: str = "What changed", old: str | None = None, new: str | None = None
) -> str:
    """A diff as an HTML page; what `TreeDiff.to_html` writes.

    Args:
        diff: the diff. Histograms and singular values are drawn where it was made
            with `stats="full"`.
        title: of the page.
        old: what the old side is called.
        new: what the new side is called.
    """
    return (
        templates()
        .get_template("page.html.jinja")
        .render(
            title=title,
            old=old,
            new=new,
            version=__version__,
            counts=_in_order(diff.counts),
            headline=headline(diff),
            structure=diff.structure,
            unread=diff.unread,
            three_way=None if diff.three_way is None else _three_way(diff.three_way),
            plain=[(c.path, c.status, c.outline(), amount(c.stats)) for c in diff.changes],
            data=_data(diff),
            css=_source("page.css"),
            script=_source("page.js"),
        )
    )


def _source(name: str) -> Markup:
    """A file of ours that goes into the page as it is."""
    return Markup(resources.files("vcjax.report").joinpath("templates", name).read_text("utf-8"))


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    order = ("changed", "added", "removed", "moved", "unchanged")
    return {status: counts[status] for status in order}


def headline(diff: TreeDiff) -> list[tuple[str, str, str]]:
    """The figures of a whole diff as (name, value, explanation)."""
    found = []
    total = next(iter(diff.rollup(0)), None)
    stats = total.stats if total is not None else None
    if stats is not None:
        found += [
            ("relative change", amount(stats), "|new − old| / |old| of all leaves with figures"),
            ("l2 of the change", format_number(stats["l2"]), "|new − old|"),
            (
                "elements changed",
                format_percent(stats["fraction_changed"]),
                "of the leaves with figures",
            ),
            ("cosine", format_number(stats["cosine"]), "of the angle between old and new"),
            ("largest change", format_number(stats["max_abs"]), "of an element"),
        ]
    if stats is not None and stats.get("update_bytes"):
        saved = f"{format_bytes(stats['update_bytes'])} of {format_bytes(stats['dense_bytes'])}"
        found.append(("smallest update", saved, "what the suggested updates would take"))
    structural = ("structural divergence", diff.structural_divergence, "paths, shapes and kinds")
    contextual = ("contextual divergence", diff.contextual_divergence, "contents too")
    for name, value, about in (structural, contextual):
        found.append((name, f"{value:.3f}", f"0 for equal trees, 1 at the most; of {about}"))
    return found


def amount(stats: Mapping[str, Any] | None) -> str:
    """The relative change in words; nothing without figures."""
    return "" if stats is None else format_percent(stats["relative_l2"])


def _data(diff: TreeDiff) -> dict[str, Any]:
    """What the script of the page draws."""
    found = heat_map(diff)
    cells = [
        [cell and {"path": cell.path, "status": cell.status, "value": cell.value} for cell in row]
        for row in found.cells
    ]
    content = {
        "counts": diff.counts,
        "leaves": [_leaf(change) for change in diff.changes],
        "modules": [
            {
                "path": module.path,
                "counts": module.counts,
                "stats": module.stats and {name: module.stats[name] for name in MODULE_FIGURES},
            }
            for module in diff.rollup(None)
        ],
        "heat": {"rows": found.rows, "columns": found.columns, "cells": cells},
    }
    return standard(_short(content))


def _leaf(change: LeafChange) -> dict[str, Any]:
    return {
        "path": change.path,
        "status": change.status,
        "shape": "" if change.old is None and change.new is None else change.outline(),
        "old_path": change.old_path,
        "note": change.note,
        "stats": change.stats,
    }


def _short(value: Any) -> Any:
    """The same with fewer digits."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _short(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_short(child) for child in value]
    return value


def _three_way(three: ThreeWay) -> dict[str, Any]:
    words = fates(three)
    rows = [
        [leaf.path, leaf.verdict, *words[leaf.path], *agreement_cells(leaf.stats)]
        for leaf in three.leaves
        if leaf.verdict != "unchanged"
    ]
    words = [verdicts(three), agreement_line(three), _VECTORS]
    return {
        "summary": ". ".join(text[0].upper() + text[1:] for text in words if text),
        "columns": ["leaf", "changed by", "ours", "theirs", *HEADINGS],
        "rows": rows,
    }


_VECTORS = "Figures are of the two task vectors, ours − base and theirs − base."
