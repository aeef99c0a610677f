"""`vcjax switch`: change the current branch."""

from absl import flags

from vcjax.cli.command import Command, UsageError
from vcjax.cli.session import Session


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean(
        "create", False, "make the branch at HEAD first", short_name="c", flag_values=values
    )
    flags.DEFINE_boolean(
        "detach", False, "NAME is any revision; HEAD is then on no branch", flag_values=values
    )


def run(session: Session) -> int:
    """Points HEAD to a branch, or to a commit."""
    name, values = session.args[0], session.flags
    if values.create and values.detach:
        raise UsageError("--create and --detach exclude each other", hint="leave one of them out")
    head = session.repo.switch(name, create=values.create, detach=values.detach)
    where = f"branch {head.branch}" if head.branch else f"commit {(head.commit or '')[:8]}"
    session.out.line(f"HEAD is now on {where}")
    session.out.document("switch", {"branch": head.branch, "commit": head.commit})
    return 0


COMMAND = Command(
    name="switch",
    summary="Change the current branch",
    usage="NAME",
    run=run,
    arguments=(1, 1),
    define=define,
    details="Files are not touched; `vcjax checkout` writes them.",
)
