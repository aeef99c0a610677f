"""`vcjax plot`: how leaves moved over history, as a picture."""

from typing import TYPE_CHECKING

from absl import flags

from vcjax import report
from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.report import Column, Line, format_number, line, table

if TYPE_CHECKING:
    from vcjax.repo.trajectory import LeafTrace, Trajectory

COLUMNS = (
    Column("leaf"),
    Column("norm at start", right=True),
    Column("at end", right=True),
    Column("distance", right=True),
    Column("largest change", right=True),
    Column("in", style="yellow"),
)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "over",
        "HEAD",
        "range `A..B` of commits, by first parents; a revision alone means from the first commit",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "`FILE` for the picture: .png, .svg or .pdf; without it only the table is printed",
        short_name="o",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Measures leaves over history, draws them, and prints the ends of the lines."""
    over, output = session.flags.over, session.flags.output
    with session.out.status(f"measuring {over}"):
        trajectory = session.repo.trajectory(over, session.args or None)
        if output:
            report.save(report.trajectory_figure(trajectory), output)
    fields = {"over": over, "output": output, **trajectory.to_dict()}
    session.out.report("plot", fields, _lines(trajectory, output))
    return 0


def _lines(trajectory: "Trajectory", output: str | None) -> list[Line]:
    rows = [_row(leaf, trajectory) for leaf in trajectory.leaves]
    end = f", drawn in {output}" if output else ""
    over = f"{len(rows):,} leaves over {_extent(trajectory)}{end}"
    return [*table(COLUMNS, rows), line(over)]


def _extent(trajectory: "Trajectory") -> str:
    """Over how many commits, and which, the figures are: those that have data."""
    count, measured = len(trajectory.commits), trajectory.measured
    if len(measured) == count:
        return f"{count:,} commits"
    gone = f"the data of {count - len(measured):,} were pruned"
    if not measured:
        return f"none of {count:,} commits: {gone}"
    ends = f"{measured[0].digest[:8]} to {measured[-1].digest[:8]}"
    return f"{len(measured):,} of {count:,} commits, {ends}: {gone}"


def _row(leaf: "LeafTrace", trajectory: "Trajectory") -> list[str]:
    norms = [norm for norm in leaf.norm if norm is not None]
    distances = [distance for distance in leaf.distance if distance is not None]
    steps = [(step, i) for i, step in enumerate(leaf.step) if step is not None]
    largest, place = max(steps, key=lambda pair: pair[0], default=(0.0, 0))
    return [
        leaf.path or "(root)",
        format_number(norms[0]) if norms else "",
        format_number(norms[-1]) if norms else "",
        format_number(distances[-1]) if distances else "",
        format_number(largest) if steps else "",
        trajectory.commits[place].digest[:8] if largest else "",
    ]


COMMAND = Command(
    name="plot",
    summary="Draw how leaves moved over history: norm, distance from the start, change per commit",
    usage="[GLOB…]",
    run=run,
    arguments=(0, None),
    define=define,
    details="Reads the leaves that match a GLOB (all by default) in every commit of the range that "
    "changed them; three versions of one leaf are in memory at a time. Norms and distances are "
    "L2. The picture needs matplotlib: pip install 'vcjax[plots]'.",
)
