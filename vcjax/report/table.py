"""Tables of aligned columns, without rules, so that `grep`, `cut` and `sort` work on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vcjax.report.lines import Line, Span, escaped, line

GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: its name; a table without any headings has no heading line.
        right: whether its cells are aligned to the right.
        style: of its cells.
    """

    heading: str = ""
    right: bool = False
    style: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Span]]) -> Iterator[Line]:
    """The lines of a table; every cell is shown whole.

    Args:
        columns: one per cell of a row.
        rows: cells; a `Span` brings its own style.
    """
    cells = [
        [_cell(cell, column) for cell, column in zip(row, columns, strict=True)] for row in rows
    ]
    if any(column.heading for column in columns):
        cells.insert(0, [Span(column.heading, "bold") for column in columns])
    widths = [max((len(row[i].text) for row in cells), default=0) for i in range(len(columns))]
    for row in cells:
        parts: list[Span] = []
        for cell, column, width in zip(row, columns, widths, strict=True):
            text = cell.text.rjust(width) if column.right else cell.text.ljust(width)
            parts += [Span(GAP), Span(text, cell.style)]
        yield line(*parts[1:])


def _cell(cell: str | Span, column: Column) -> Span:
    span = cell if isinstance(cell, Span) else Span(cell, column.style)
    return Span(escaped(span.text), span.style)
