"""A diff as a notebook shows it: short, and the same on light and dark pages."""

from vcjax.diffing import TreeDiff
from vcjax.report.changes import most_changed, relative, summary
from vcjax.report.figures import format_number
from vcjax.report.page import amount, templates

ROWS = 25


def notebook_html(diff: TreeDiff) -> str:
    """The counts and the leaves that changed the most; `TreeDiff._repr_html_`."""
    changes = most_changed(diff)
    sizes = {c.path: relative(c.stats) for c in changes}
    top = max((size for size in sizes.values() if size != float("inf")), default=0.0)
    rows = [
        {
            "cells": [
                change.path or "(root)",
                change.status,
                change.describe(),
                amount(change.stats),
                "" if change.stats is None else format_number(change.stats["cosine"]),
            ],
            "share": round(100 * min(1.0, sizes[change.path] / top)) if top else 0,
        }
        for change in changes[:ROWS]
    ]
    total = next(iter(diff.rollup(0)), None)
    return (
        templates()
        .get_template("notebook.html.jinja")
        .render(
            summary=summary(diff),
            unread=diff.unread,
            amount=amount(total.stats if total else None),
            columns=("leaf", "status", "shape", "relative", "cosine"),
            rows=rows,
            left=len(changes) - len(rows),
        )
    )
