"""`vcjax gc`: delete what nothing leads to."""

from absl import flags

from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.report import Span, format_bytes, line

_COST = (
    "Nothing was spared for its age: if somebody was committing meanwhile, "
    "`vcjax fsck` says whether that commit is whole"
)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean("dry_run", False, "only tell what would be deleted", flag_values=values)
    flags.DEFINE_float(
        "grace",
        24.0,
        "spare what was written in the last `HOURS`: it may belong to a commit in progress",
        0.0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "force",
        False,
        "spare only what was written in the last 10 minutes, which a commit may take",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "unsafe",
        False,
        "spare nothing for its age: a commit that is being made just now may lose its data",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Deletes unreachable commits, manifests and leaf objects."""
    values = session.flags
    with session.out.status("looking for what nothing leads to"):
        plan = session.repo.gc(
            dry_run=values.dry_run,
            grace=values.grace * 3600,
            force=values.force,
            unsafe=values.unsafe,
        )
    amount = (
        f"{len(plan.commits):,} commits, {len(plan.manifests):,} manifests, "
        f"{len(plan.objects):,} objects ({format_bytes(plan.nbytes)})"
    )
    listed = [
        ("commit", plan.commits),
        ("manifest", plan.manifests),
        ("object", plan.objects),
        ("leftover", plan.leftovers),
    ]
    lines = [line(f"{kind} {name}") for kind, names in listed for name in names]
    lines.append(line(f"{'Would delete' if values.dry_run else 'Deleted'} {amount}"))
    if plan.spared:
        lines.append(line(f"Spared {plan.spared:,} unreferenced objects for their age"))
    if values.unsafe:
        lines.append(line(Span(_COST, "yellow")))
    session.out.report("gc", {"dry_run": values.dry_run, **plan.to_dict()}, lines)
    return 0


COMMAND = Command(
    name="gc",
    summary="Delete what no ref, and no former state of one, leads to",
    usage="",
    run=run,
    define=define,
    details="Former states of refs keep their commits for 90 days. Ages are told by the store's "
    "own clock. Files of other programs, and what symbolic links lead to, are left alone. --force "
    "spares the last 10 minutes nevertheless, so that commits in progress stay whole; --unsafe "
    "does not: what is being committed meanwhile may be lost.",
)
