"""`vcjax fsck`: check the whole repository."""

from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.report import Span, format_bytes, line


def run(session: Session) -> int:
    """Checks everything against its digest; exit code 1 if something is wrong."""
    with session.out.status("checking every ref, commit and leaf"):
        report = session.repo.fsck()
    lines = [line(Span("problem ", "bold red"), str(problem)) for problem in report.problems]
    checked = f"{report.commits:,} commits, {report.leaves:,} leaves"
    verdict = f"{len(report.problems):,} problems" if report.problems else "all is well"
    lines.append(line(f"{checked}, {format_bytes(report.nbytes)}: {verdict}"))
    session.out.report("fsck", report.to_dict(), lines)
    return 0 if report.ok else 1


COMMAND = Command(
    name="fsck",
    summary="Check every ref, commit and leaf against its digest",
    usage="",
    run=run,
    details="All data are read. The exit code is 1 if there is a problem. What nothing leads to is "
    "no problem; `vcjax gc` collects it.",
)
