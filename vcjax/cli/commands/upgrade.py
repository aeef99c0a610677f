"""`vcjax upgrade`: take a repository to the newest version of the disk format."""

from absl import flags

from vcjax.cli.command import Command
from vcjax.cli.session import Session


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean("dry_run", False, "only tell what would be done", flag_values=values)


def run(session: Session) -> int:
    """Upgrades a repository and says what was done."""
    dry_run = session.flags.dry_run
    done = session.repo.upgrade(dry_run=dry_run)
    if done.before == done.after:
        session.out.line(f"the repository has format version {done.after} already")
    else:
        would = "would write" if dry_run else "wrote"
        session.out.line(
            f"{would} {len(done.records):,} refs and entries of the log anew: "
            f"format version {done.before} to {done.after}"
        )
    session.out.document("upgrade", {"dry_run": dry_run, **done.to_dict()})
    return 0


COMMAND = Command(
    name="upgrade",
    summary="Take the repository to the newest version of the disk format",
    usage="",
    run=run,
    define=define,
    details="Repositories of older versions are read and written as they are; an upgraded one is "
    "refused by versions of vcjax that do not know its format. Objects are not rewritten, others "
    "may commit meanwhile, and an upgrade that was interrupted is begun again.",
)
