"""The heat map of a diff: layers × kinds of parameters."""

import re
from dataclasses import dataclass

from vcjax.diffing import LeafChange, TreeDiff


@dataclass(frozen=True)
class Cell:
    """One leaf in a heat map.

    Attributes:
        path: leaf path.
        status: of its change.
        value: relative L2 of its change; 0 if unchanged, None where there is no figure.
    """

    path: str
    status: str
    value: float | None


@dataclass(frozen=True)
class HeatMap:
    """Leaves by layer and kind of parameter.

    Attributes:
        rows: path of the layer: a leaf path up to its last number, or without its last part.
        columns: the rest of the leaf path, the most frequent first.
        cells: one list per row; None where a layer lacks a parameter.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]


def heat_map(diff: TreeDiff) -> HeatMap:
    """Sorts the leaves of a diff into layers and kinds of parameters.

    What is numbered alike is a layer: `decoder/layers_3/attention/query/kernel`, or
    `layers/3/attention/…`, is the parameter `attention/query/kernel` of the layer
    `decoder/layers_3`. Leaves below no number are parameters, by their last part, of the
    module that holds them.
    """
    found: dict[str, dict[str, Cell]] = {}
    uses: dict[str, int] = {}
    for change in diff.changes:
        layer, kind = split(change.path)
        row = found.setdefault(layer, {})
        if change.status == "removed" and kind in row:
            continue  # another leaf has come in its place
        row[kind] = Cell(change.path, change.status, _value(change))
        uses[kind] = uses.get(kind, 0) + 1
    rows = sorted(found, key=natural)
    columns = sorted(uses, key=lambda kind: -uses[kind])
    cells = tuple(tuple(found[row].get(kind) for kind in columns) for row in rows)
    return HeatMap(tuple(rows), tuple(columns), cells)


def natural(path: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in paths as numbers: layers_9 before layers_10."""
    parts = re.split(r"([0-9]+)", path)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def split(path: str) -> tuple[str, str]:
    """The layer and the kind of parameter of a leaf path.

    Example:
        >>> split("decoder/layers_3/attention/query/kernel")
        ('decoder/layers_3', 'attention/query/kernel')
        >>> split("head/kernel"), split("kernel")
        (('head', 'kernel'), ('', 'kernel'))
    """
    parts = path.split("/")
    numbered = [i for i, part in enumerate(parts[:-1]) if part[-1:].isdigit()]
    # The outermost number counts: what is numbered inside a layer are its parts.
    cut = numbered[0] + 1 if numbered else len(parts) - 1
    return "/".join(parts[:cut]), "/".join(parts[cut:])


def _value(change: LeafChange) -> float | None:
    if change.stats is not None:
        found = change.stats["relative_l2"]
        return None if found is None else float(found)
    kept = change.status in ("unchanged", "moved") and not change.content_changed
    return 0.0 if kept else None
