"""`vcjax merge --continue`, `--abort`, `--rerun`; and what any merge by history reports."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vcjax import report
from vcjax.cli.command import UsageError
from vcjax.cli.commands import merge_questions as merge_asking
from vcjax.cli.commands import merge_whole as merge_models
from vcjax.cli.session import Session
from vcjax.cli.values import metrics, pair
from vcjax.errors import ConflictError

if TYPE_CHECKING:
    from vcjax.history import Commit

_WORDS = {
    "merged": "Merged",
    "fast_forward": "Fast-forward",
    "up_to_date": "Up to date already",
}


def run(session: Session) -> int:
    """Goes on with a merge, drops it, or makes one again."""
    values = session.flags
    wanted = [name for name in ("continue", "abort", "rerun") if values[name].value]
    if len(wanted) > 1:
        raise UsageError(
            f"{' and '.join(f'--{name}' for name in wanted)} exclude each other",
            hint="give one of them",
        )
    if not wanted:
        raise UsageError("--replan is for --continue", hint="vcjax merge --continue --replan")
    if session.args:
        raise UsageError(
            f"--{wanted[0]} takes no revisions", hint=f"leave {' '.join(session.args)} out"
        )
    return {"continue": _continue, "abort": _abort, "rerun": _rerun}[wanted[0]](session)


def check_terminal(values: Any) -> None:
    """Raises if questions are to be asked, and nobody is there to answer.

    Raises:
        UsageError: stdin is no terminal.
    """
    if values.interactive and not sys.stdin.isatty():
        raise UsageError(
            "--interactive needs a terminal to ask on",
            hint="settle conflicts with --rule=GLOB=SIDE, --resolve or --method",
        )


def rules_of(values: Any, names: Sequence[str]) -> list[tuple[str, str]]:
    """The rules that the flags name, those of `--rule` before that for everything.

    Raises:
        UsageError: a side that a merge of `names` does not have.
    """
    from vcjax.threeway.rules import side_names  # loads TensorStore

    rules = [pair("rule", text) for text in values.rule]
    known = (*side_names(names), "base", "method")
    for glob, side in rules:
        if side not in known:
            raise UsageError(
                f"--rule={glob}={side}: {side!r} is no side", hint=f"one of {', '.join(known)}"
            )
    wanted = {values.resolve, *(name for name in ("ours", "theirs") if values[name].value)}
    wanted.discard(None)
    if len(wanted) > 1:
        raise UsageError(
            f"all conflicts cannot be settled by {' and by '.join(sorted(wanted))}",
            hint="give one of --resolve, --ours and --theirs",
        )
    return [*rules, *(("**", str(side)) for side in wanted)]


def _continue(session: Session) -> int:
    values, repo = session.flags, session.repo
    check_terminal(values)
    progress = repo.merges.get(values.branch)
    names = ("HEAD", "") if progress is None else progress.request.names  # then it is refused below
    before = [] if progress is None else progress.request.commits
    rules = rules_of(values, names)
    try:
        with session.out.progress("merging") as shown:
            commit = repo.merges.resume(
                values.branch,
                method=merge_models.method_of(values),
                resolve=rules,
                weights=merge_models.weights_of(values),
                key=values.seed,
                message=values.message,
                metrics=metrics(values.metric),
                author=session.author,
                replan=values.replan,
                progress=shown,
            )
    except ConflictError as error:
        return unfinished(session, error, values.branch)
    return finished(session, commit, before)


def _abort(session: Session) -> int:
    session.repo.merges.abort(session.flags.branch)
    where = session.flags.branch or session.repo.head.branch or "HEAD"
    session.out.line(f"Dropped the merge into {where}, which is where it was")
    fields = {"outcome": "aborted", "commit": None, "decisions": {}, "conflicts": []}
    session.out.document("merge", fields)
    return 0


def _rerun(session: Session) -> int:
    with session.out.progress("merging again") as shown:
        found = session.repo.merges.rerun(session.flags.rerun, shown)
    commit = found.commit
    if found.is_same:
        session.out.line(f"The same: {commit.digest[:8]} {commit.summary}")
        session.out.line(f" tree {found.tree}")
    else:
        session.out.line(f"Not the same: {commit.digest[:8]} {commit.summary}")
        session.out.line(f" tree {commit.tree} as recorded")
        session.out.line(f" tree {found.tree} now")
        for path in found.differing:
            session.out.line("  ", path)
    if found.inputs_differ:
        session.out.note(report.Span("note: ", "bold"), found.inputs_differ)
    session.out.document("merge_rerun", found.to_dict())
    return 0 if found.is_same else 1


def finished(session: Session, commit: "Commit", before: Sequence[str]) -> int:
    """Reports a merge that is done.

    Args:
        session: of the command.
        commit: that came out.
        before: digests of the sides.
    """
    outcome = "merged"
    if before and commit.digest == before[0]:
        outcome = "up_to_date"
    elif commit.digest in before:
        outcome = "fast_forward"
    session.out.line(f"{_WORDS[outcome]}: {commit.digest[:8]} {commit.summary}")
    decided = (commit.provenance or {}).get("decisions", {}) if outcome == "merged" else {}
    counts = {how: list(decided.values()).count(how) for how in dict.fromkeys(decided.values())}
    if counts:
        session.out.line(" " + ", ".join(f"{n:,} {how}" for how, n in counts.items()))
    fields = {"outcome": outcome, "commit": report.commit_document(commit), "decisions": decided}
    session.out.document("merge", {**fields, "conflicts": []})
    return 0


def unfinished(session: Session, error: ConflictError, branch: str | None) -> int:
    """Asks about what is left, if it may, and else reports it.

    Args:
        session: of the command.
        error: that names the conflicts.
        branch: that the merge moves; None for the current one.
    """
    progress = session.repo.merges.get(branch)
    if progress is None or progress.has_moved:
        raise error
    if session.flags.interactive:
        try:
            commit = merge_asking.settle(session, progress, branch)
        except ConflictError as left:
            return _report(session, left, branch)
        return finished(session, commit, progress.request.commits)
    return _report(session, error, branch)


def _report(session: Session, error: ConflictError, branch: str | None) -> int:
    """Reports what is left to settle, as a document too."""
    progress = session.repo.merges.get(branch)
    if not session.out.json or progress is None:
        raise error
    fields = {"outcome": "conflict", "commit": None, "decisions": {}}
    session.out.document("merge", {**fields, "conflicts": list(progress.left)})
    session.out.note(report.Span("error: ", "bold red"), error.message.partition("\n")[0])
    session.out.note(report.Span("hint: ", "bold cyan"), error.shell_hint or "")
    return 1
