"""`vcjax branch`: list, make, move or delete branches."""

from vcjax.cli.command import Command
from vcjax.cli.commands import branch_or_tag as refs
from vcjax.cli.session import Session

BRANCH = refs.RefKind(
    word="branch",
    plural="branches",
    all=lambda session: session.repo.branches,
    make=lambda session, name, at, force: session.repo.branch(name, at, force=force),
    delete=lambda session, name: session.repo.delete_branch(name),
)


def run(session: Session) -> int:
    """Lists branches, makes one, or deletes one."""
    return refs.run(session, BRANCH)


COMMAND = Command(
    name="branch",
    summary="List, make, move or delete branches",
    usage="[NAME [REV]]",
    run=run,
    arguments=(0, 2),
    define=refs.define,
    details="Without a NAME the branches are listed, the current one with a star. Making a branch "
    "does not make it the current one: `vcjax switch NAME` does.",
)
