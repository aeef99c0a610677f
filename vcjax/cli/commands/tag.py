"""`vcjax tag`: list, make, move or delete tags."""

from vcjax.cli.command import Command
from vcjax.cli.commands import branch_or_tag as refs
from vcjax.cli.session import Session

TAG = refs.RefKind(
    word="tag",
    plural="tags",
    all=lambda session: session.repo.tags,
    make=lambda session, name, at, force: session.repo.tag(name, at, force=force),
    delete=lambda session, name: session.repo.delete_tag(name),
)


def run(session: Session) -> int:
    """Lists tags, makes one, or deletes one."""
    return refs.run(session, TAG)


COMMAND = Command(
    name="tag",
    summary="List, make, move or delete tags",
    usage="[NAME [REV]]",
    run=run,
    arguments=(0, 2),
    define=refs.define,
)
