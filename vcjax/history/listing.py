"""Short tables of commits and leaves, as text for a debugger and as HTML for a notebook."""

from collections.abc import Sequence
from html import escape

TEXT_ROWS = 10
"""Rows of a table as text."""

HTML_ROWS = 25
"""Rows of a table in a notebook."""

CELL_WIDTH = 48
"""Characters of a cell of text."""

_CELL = "text-align: left; padding: 1px 10px 1px 0; white-space: nowrap"


def text_listing(title: str, rows: Sequence[Sequence[str]], left: int | str = 0) -> str:
    """A title and aligned rows below it.

    Args:
        title: the first line.
        rows: cells, as many in each; those after the first `TEXT_ROWS` are counted.
        left: how many more rows there are, or words for that.
    """
    shown = [[_short(cell) for cell in row] for row in rows[:TEXT_ROWS]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    cells = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in shown
    )
    more = _more(rows, TEXT_ROWS, left)
    return "\n".join(
        [title, *(f"  {row}".rstrip() for row in cells), *([f"  {more}"] if more else [])]
    )


def html_listing(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int | str = 0
) -> str:
    """The same as a table for a notebook.

    Args:
        title: what stands above it.
        columns: the headings.
        rows: cells; those after the first `HTML_ROWS` are counted.
        left: how many more rows there are, or words for that.
    """
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows[:HTML_ROWS]
    )
    more = _more(rows, HTML_ROWS, left)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    end = f"<p>{escape(more)}</p>" if more else ""
    return f"<div><p><b>{escape(title)}</b></p>{table}{end}</div>"


def _more(rows: Sequence[Sequence[str]], shown: int, left: int | str) -> str:
    if isinstance(left, str):
        return left
    count = max(0, len(rows) - shown) + left
    return f"… and {count:,} more" if count else ""


def _short(cell: str) -> str:
    plain = cell if cell.isprintable() else repr(cell)[1:-1]
    return plain if len(plain) <= CELL_WIDTH else f"{plain[: CELL_WIDTH - 1]}…"
