"""`vcjax fsck`: check the whole repository, and repair it."""

from typing import TYPE_CHECKING

from absl import flags

from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.report import Line, Span, format_bytes, line

if TYPE_CHECKING:
    from vcjax.objects import RepairReport


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean(
        "repair",
        False,
        "first heal what can be healed, and put damaged objects aside",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Checks everything against its digest; exit code 1 if something is wrong."""
    lines: list[Line] = []
    repaired = None
    if session.flags.repair:
        with session.out.status("healing what can be healed"):
            repaired = session.repo.repair()
        lines += _repaired(repaired)
    with session.out.status("checking every ref, commit and leaf"):
        report = session.repo.fsck()
    lines += [line(Span("note ", "yellow"), str(note)) for note in report.notes]
    lines += [line(Span("problem ", "bold red"), str(problem)) for problem in report.problems]
    checked = f"{report.commits:,} commits, {report.leaves:,} leaves"
    verdict = f"{len(report.problems):,} problems" if report.problems else "all is well"
    lines.append(line(f"{checked}, {format_bytes(report.nbytes)}: {verdict}"))
    document = report.to_dict() | {"repaired": repaired and repaired.to_dict()}
    session.out.report("fsck", document, lines)
    return 0 if report.ok else 1


def _repaired(report: "RepairReport") -> list[Line]:
    lines = [line(Span("healed ", "green"), key) for key in report.healed]
    for key, commits in report.quarantined.items():
        named = ", ".join(digest[:8] for digest in commits)
        lines.append(line(Span("put aside ", "bold red"), f"{key}: commits {named} have lost it"))
    return lines


COMMAND = Command(
    name="fsck",
    summary="Check every ref, commit and leaf against its digest",
    usage="",
    run=run,
    define=define,
    details="All data are read. The exit code is 1 if there is a problem. What nothing leads to is "
    "no problem; `vcjax gc` collects it. --repair heals what an interrupted writer can have left, "
    "and moves objects that cannot be read to quarantine/, naming the commits that lose them.",
)
