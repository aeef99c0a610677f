"""`vcjax undo`: take back the last change of the current branch."""

from vcjax.cli.command import Command
from vcjax.cli.session import Session


def run(session: Session) -> int:
    """Moves the branch to where it was; again, further back."""
    from vcjax.history.refnames import HEADS, set_command

    repo = session.repo
    branch = repo.head.branch
    ref = repo.undo()
    assert branch is not None  # else `undo` has refused
    if ref is None:
        session.out.line(f"branch {branch} has no commit any more")
        before = repo.refs.log(HEADS + branch)[0].commit
    else:
        summary = repo.history.commit(ref.commit).summary
        session.out.line(f"branch {branch} is back at {ref.commit[:8]} {summary}")
        before = f"{branch}@{{1}}"
    session.out.line(f"{set_command(branch, before)} would redo it")
    session.out.document("undo", {"branch": branch, "commit": None if ref is None else ref.commit})
    return 0


COMMAND = Command(
    name="undo",
    summary="Take back the last change of the current branch (commit, merge…)",
    usage="",
    run=run,
    details="Doing it again goes further back. Nothing is lost: BRANCH@{1} is what was undone, "
    "and `vcjax log --reflog` lists all former states.",
)
