"""Pictures as matplotlib figures. Needs the extra `vcjax[plots]`.

Every function gives a `matplotlib.figure.Figure` that belongs to nobody: no
window, no state of pyplot. A notebook shows it; `save` writes it to a file.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcjax.diffing import LeafChange, TreeDiff
from vcjax.errors import StorageError, VcjaxError
from vcjax.report.heat import heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vcjax.repo.trajectory import LeafTrace, Trajectory

LABELLED = 8
"""How many leaves get a colour and a name of their own; further ones are grey."""

SUFFIXES = (".png", ".svg", ".pdf")

_COLOURS = ("#3b6fb5", "#d9822b", "#3c9a5f", "#b8484b", "#7d5ba6", "#8a6d3b", "#c76ba2", "#4fa3a5")


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VcjaxError(
            "pictures need matplotlib, which is not installed",
            hint="pip install 'vcjax[plots]'",
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file: PNG, SVG or PDF by its suffix.

    Raises:
        VcjaxError: it is another suffix.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise VcjaxError(
            f"{str(path)!r} does not say what kind of picture is wanted",
            hint=f"end the name in {', '.join(SUFFIXES)}",
        )
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def trajectory_figure(trajectory: "Trajectory") -> "Figure":
    """Norm, distance from the start and change per commit of leaves, over their commits.

    The eight leaves that went farthest have colours and names; others are grey.
    """
    figure = _figure(9, 7.5)
    axes = figure.subplots(3, 1, sharex=True)
    steps = [commit.step for commit in trajectory.commits]
    known = [step for step in steps if step is not None]
    in_order = len(known) == len(steps) and known == sorted(set(known))
    places: list[float] = [float(x) for x in (known if in_order else range(len(steps)))]
    order = sorted(trajectory.leaves, key=_reach, reverse=True)
    panels = (("norm", "norm"), ("distance", "distance from the start"), ("step", "change"))
    for panel, (name, label) in zip(axes, panels, strict=True):
        for number, leaf in reversed(list(enumerate(order))):
            values = [math.nan if v is None else v for v in getattr(leaf, name)]
            named = number < LABELLED
            panel.plot(
                places,
                values,
                color=_COLOURS[number] if named else "#b8b8b8",
                linewidth=1.6 if named else 0.8,
                marker="o" if len(places) <= 40 and named else "",
                markersize=3,
                label=leaf.path or "(root)" if named else None,
            )
        panel.set_ylabel(label)
        _plain(panel)
    axes[-1].set_xlabel("training step" if in_order else "commit")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=8, frameon=False)
    if len(order) > LABELLED:
        axes[0].set_title(f"{len(order):,} leaves, {LABELLED} of them named", fontsize=9)
    return figure


def _reach(leaf: "LeafTrace") -> float:
    return max((value for value in leaf.distance if value is not None), default=0.0)


def diff_figure(diff: TreeDiff) -> "Figure":
    """The relative change of every leaf: layers down, kinds of parameters across.

    The scale is logarithmic. Grey are leaves without such a figure: unchanged ones, what
    was added or removed, and what was 0 before.
    """
    found = heat_map(diff)
    figure = _figure(2.5 + 0.5 * len(found.columns), 1.6 + 0.24 * len(found.rows))
    axes = figure.subplots()
    cells = [[_log(cell and cell.value) for cell in row] for row in found.cells]
    _image(axes, cells, found.rows, found.columns, "relative change (log10)", "viridis")
    return figure


def histogram_figure(diff: TreeDiff, paths: Sequence[str] | None = None) -> "Figure":
    """Histograms of new − old of leaves with `stats="full"`; the eight that moved farthest.

    Args:
        diff: the diff.
        paths: leaf paths: these instead.
    """
    return _grid_of(diff, paths, "histogram", _draw_histogram)


def spectrum_figure(diff: TreeDiff, paths: Sequence[str] | None = None) -> "Figure":
    """Singular values of new − old of leaves with `stats="full"`; see `histogram_figure`."""
    return _grid_of(diff, paths, "singular_values", _draw_spectrum)


def similarity_figure(names: Sequence[str], values: Sequence[Sequence[float]], of: str) -> "Figure":
    """A heat map of how alike the task vectors of some commits are, in [−1, 1].

    Args:
        names: of the commits.
        values: one row per commit.
        of: what the values are ("cosine").
    """
    figure = _figure(2.6 + 0.6 * len(names), 1.8 + 0.5 * len(names))
    axes = figure.subplots()
    _image(axes, values, names, names, of, "RdBu", (-1, 1))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    return figure


def _image(
    axes: "Axes",
    cells: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    colours: str,
    limits: tuple[float, float] | None = None,
) -> None:
    low, high = limits or (None, None)
    axes.set_facecolor("#e4e4e4")
    image = axes.imshow(cells or [[math.nan]], cmap=colours, aspect="auto", vmin=low, vmax=high)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=45, ha="right")
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, label=label)


def _grid_of(diff: TreeDiff, paths: Sequence[str] | None, name: str, draw: Any) -> "Figure":
    found = [c for c in diff.changes if c.stats is not None and c.stats.get(name)]
    if paths is not None:
        found = [change for change in found if change.path in set(paths)]
    found = sorted(found, key=_distance, reverse=True)[: None if paths is not None else LABELLED]
    if not found:
        raise VcjaxError(f"no leaf of this diff has {name}", hint='diff with stats="full"')
    width = min(4, len(found))
    height = math.ceil(len(found) / width)
    figure = _figure(3.2 * width, 2.5 * height)
    axes = figure.subplots(height, width, squeeze=False).flat
    for panel, change in zip(axes, found, strict=False):
        draw(panel, change.stats)
        panel.set_title(change.path, fontsize=8)
        _plain(panel)
    for panel in list(axes)[len(found) :]:
        panel.set_visible(False)
    return figure


def _draw_histogram(axes: "Axes", stats: Mapping[str, Any]) -> None:
    counts, edges = stats["histogram"]["counts"], stats["histogram"]["edges"]
    axes.stairs(counts, edges, fill=True, color=_COLOURS[0])
    axes.set_yscale("symlog", linthresh=1)


def _draw_spectrum(axes: "Axes", stats: Mapping[str, Any]) -> None:
    values = stats["singular_values"]
    axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, color=_COLOURS[0])
    if all(value > 0 for value in values):
        axes.set_yscale("log")


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(which="both", labelsize=8)


def _distance(change: LeafChange) -> float:
    return 0.0 if change.stats is None else float(change.stats["l2"])


def _log(value: float | None) -> float:
    return math.log10(value) if value and math.isfinite(value) else math.nan
