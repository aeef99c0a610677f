"""`vcjax export`: write a commit for another library."""

from pathlib import Path

from absl import flags

from vcjax import report
from vcjax.cli.command import Command
from vcjax.cli.commands.import_ import checked_format
from vcjax.cli.session import Session

TARGETS = ("orbax",)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean(
        "manager",
        False,
        "DIR is the directory of a CheckpointManager: write the step of the commit there",
        flag_values=values,
    )
    flags.DEFINE_string(
        "step_prefix",
        None,
        "`PREFIX` of the name of the step, with --manager",
        flag_values=values,
    )
    flags.DEFINE_boolean("force", False, "replace the checkpoint that is there", flag_values=values)


def run(session: Session) -> int:
    """Exports a commit."""
    form = checked_format(session.args[0], TARGETS)
    from vcjax.orbax.files.export_plan import plan_export

    values, (_, revision, folder) = session.flags, session.args
    plan = plan_export(
        session.repo,
        revision,
        Path(folder),
        manager=values.manager,
        prefix=values.step_prefix,
        force=values.force,
    )
    from absl import logging

    from vcjax.orbax.files.export import run_export  # loads Orbax, 1 s

    if not values.debug:
        logging.set_verbosity(logging.ERROR)  # Orbax warns of what is no fault
    with session.out.status(f"exporting {revision}"):
        run_export(session.repo, plan)
    size = f"{plan.commit.leaves:,} leaves, {report.format_bytes(plan.commit.nbytes)}"
    session.out.line(f"Wrote {plan.commit.digest[:8]} to {plan.target} ({size})")
    session.out.document(
        "export",
        {"commit": plan.commit.digest, "target": str(plan.target), "export_format": form},
    )
    return 0


COMMAND = Command(
    name="export",
    summary="Write the tree of a commit as a checkpoint of another library",
    usage="orbax REV DIR",
    run=run,
    arguments=(3, 3),
    define=define,
    details="Orbax restores what is written: with StandardCheckpointer or PyTreeCheckpointer, or "
    "with CheckpointManager if --manager is given or the commit has several items. What Orbax "
    "cannot hold (empty arrays, Python complex numbers, bytes, keys that collide) is named, and "
    "nothing is written then. A DIR with anything in it is left alone; --force replaces a "
    "checkpoint, and nothing else.",
)
