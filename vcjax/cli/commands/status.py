"""`vcjax status`: where HEAD is, and which merges are under way."""

from typing import TYPE_CHECKING

from vcjax import report
from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.report import Line, Span

if TYPE_CHECKING:
    from vcjax.threeway.progress import MergeProgress

SHOWN = 20
"""How many conflicts are listed; `--json` lists all."""


def run(session: Session) -> int:
    """Says where HEAD is, and how merges under way stand."""
    repo = session.repo
    head = repo.head
    ref = repo.refs.get(f"refs/heads/{head.branch}" if head.branch else "HEAD")
    tip = None if ref is None else repo.history.commit(ref.commit)
    merges = repo.merges.all()
    where = f"On branch {head.branch}" if head.branch else "HEAD is on no branch"
    at = "no commit yet" if tip is None else f"{tip.digest[:8]} {tip.summary}"
    pruning = None if tip is None else repo.prunings.get(tip.digest)
    lines: list[Line] = [report.line(where), report.line(at)]
    if pruning is not None:
        lines.append(report.line(f"its data are gone: {pruning}"))
    for progress in merges:
        lines += _lines(progress, head.branch or "HEAD")
    fields = {
        "branch": head.branch,
        "commit": None if tip is None else tip.digest,
        "pruned": None if pruning is None else pruning.to_dict(),
        "merges": [progress.to_dict() for progress in merges],
    }
    session.out.report("status", fields, lines)
    return 0


def _lines(progress: "MergeProgress", current: str) -> list[Line]:
    from vcjax.errors import listing
    from vcjax.threeway.rules import explain

    request, left = progress.request, progress.left
    flag = "" if request.short == current else f" --branch={request.short}"
    total = len(progress.plan.conflicts)
    what = f"Merging {listing(request.names[1:])} into {request.short}"
    lines = [report.line(), report.line(f"{what}: {len(left):,} of {total:,} conflicts left")]
    if progress.has_moved:
        where = f"to {progress.tip[:8]}" if progress.tip else "and is gone"
        lines.append(report.line(f"  {request.short} has moved {where} since {request.ours[:8]}"))
    for path, decision in list(left.items())[:SHOWN]:
        words = explain(decision, progress.sides)
        lines.append(report.line("  ", Span(path or "(root)", "red"), f"  {words}"))
    if len(left) > SHOWN:
        lines.append(report.line(f"  … and {len(left) - SHOWN:,} more"))
    again = " --replan" if progress.has_moved else ""
    lines.append(report.line(f"  `vcjax merge --continue{again}{flag}` goes on with it"))
    lines.append(report.line(f"  `vcjax merge --abort{flag}` drops it"))
    return lines


COMMAND = Command(
    name="status",
    summary="Say where HEAD is, and which merges are under way",
    usage="",
    run=run,
)
