"""`vcjax import`: turn what another library saved into commits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vcjax import report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.session import Session
from vcjax.errors import RepositoryNotFoundError

if TYPE_CHECKING:
    from vcjax.repo import Repository

SOURCES = ("orbax",)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "branch",
        None,
        "`NAME` of the branch to commit to, made if there is none; else the current one",
        short_name="b",
        flag_values=values,
    )
    flags.DEFINE_string(
        "step_prefix",
        None,
        "`PREFIX` of the names of the steps, where the directory has several kinds",
        flag_values=values,
    )
    flags.DEFINE_string(
        "author", None, "`NAME <ADDRESS>`; else VCJAX_AUTHOR, else this user", flag_values=values
    )
    flags.DEFINE_boolean("dry_run", False, "only tell what would be imported", flag_values=values)


def checked_format(name: str, known: tuple[str, ...]) -> str:
    """The name of a format that can be imported or exported.

    Raises:
        UsageError: it cannot be.
    """
    if name not in known:
        raise UsageError(
            f"{name!r} cannot be imported or exported",
            hint=f"formats: {', '.join(known)}; `vcjax commit` and `vcjax checkout` do files",
        )
    return name


def run(session: Session) -> int:
    """Imports the steps that the branch does not have yet."""
    checked_format(session.args[0], SOURCES)
    from vcjax.orbax.files.import_ import plan_import, return_freed_memory, run_import
    from vcjax.orbax.files.steps import read_directory

    values, out = session.flags, session.out
    return_freed_memory()  # else the C library keeps several leaves' worth of it
    with out.status(f"looking into {session.args[1]}"):
        source = read_directory(Path(session.args[1]), values.step_prefix)
        repo = _repository(session)
        plan = plan_import(repo, source, values.branch)
    for notice in plan.notices:
        out.note(f"note: {notice}")
    imported: list[dict[str, Any]] = []
    if values.dry_run:
        for step in plan.steps:
            out.line(f"Would import {step.folder.name} ({', '.join(i.name for i in step.items)})")
            imported.append({"step": step.step, "source": str(step.folder), "commit": None})
    else:
        with out.status(f"importing {session.args[1]}"):
            for step, commit in run_import(repo, plan, values.author or session.author):
                size = f"{commit.leaves:,} leaves, {report.format_bytes(commit.nbytes)}"
                out.line(f"{step.folder.name} -> {commit.digest[:8]}  {size}")
                imported.append(
                    {"step": step.step, "source": str(step.folder), "commit": commit.digest}
                )
    done = "Would import" if values.dry_run else "Imported"
    had = f"; {len(plan.skipped):,} were there already" if plan.skipped else ""
    out.line(f"{done} {len(imported):,} of {len(plan.source.steps):,} checkpoints{had}")
    out.document(
        "import",
        {
            "dry_run": values.dry_run,
            "branch": values.branch or repo.head.branch,
            "source": str(plan.source.folder),
            "imported": imported,
            "skipped": [str(step.folder) for step in plan.skipped],
            "notices": list(plan.notices),
        },
    )
    return 0


def _repository(session: Session) -> Repository:
    """The repository; made, if one is named and there is none."""
    from vcjax.repo import Repository

    try:
        return session.repo
    except RepositoryNotFoundError:
        if session.url is None:
            raise
        return Repository.init("memory://dry_run" if session.flags.dry_run else session.url)


COMMAND = Command(
    name="import",
    summary="Turn checkpoints of another library into commits",
    usage="orbax DIR",
    run=run,
    arguments=(2, 2),
    define=define,
    details="DIR is the directory of an Orbax CheckpointManager (or of the v1 API's Checkpointer), "
    "one of its steps, or a single checkpoint. Every step becomes a commit with its metrics and "
    "metadata; steps that the branch has from there already are skipped, so an "
    "import that was interrupted is simply repeated. Leaves are read one by one, and equal ones "
    "are stored once.\n\n"
    "A repository that --repo or VCJAX_REPO names is made if there is none.",
)
