"""Converts checkpoints of Orbax to a repository, and commits of a repository to checkpoints.

    python scripts/convert.py --source=checkpoints --repo=run
    python scripts/convert.py --repo=run --revision=best:loss --target=best
    python scripts/convert.py --repo=run --revision=step:100 --target=checkpoints --manager

What `vcjax import` and `vcjax export` do, as a script to start from: the steps of a directory
become commits, leaf by leaf, and a second run goes on where the first was stopped.
"""

import sys
from pathlib import Path

from absl import app, flags

import vcjax
from vcjax.orbax.files.export import run_export
from vcjax.orbax.files.export_plan import plan_export
from vcjax.orbax.files.import_ import plan_import, return_freed_memory, run_import
from vcjax.orbax.files.steps import read_directory

REPO = flags.DEFINE_string("repo", None, "Path or URL of the repository.", required=True)
SOURCE = flags.DEFINE_string("source", None, "Directory of a CheckpointManager, or a checkpoint.")
BRANCH = flags.DEFINE_string("branch", None, "Branch to import to; the current one by default.")
TARGET = flags.DEFINE_string("target", None, "Folder to export to.")
REVISION = flags.DEFINE_string("revision", "HEAD", "What to export.")
MANAGER = flags.DEFINE_boolean("manager", False, "Export a step to a manager's directory.")
FORCE = flags.DEFINE_boolean("force", False, "Replace the checkpoint that is there.")


def import_steps(source: str, url: str) -> None:
    """Imports the steps that the repository, made if there is none, does not have yet."""
    directory = read_directory(Path(source))
    repo = vcjax.Repository.init(url, exist_ok=True)
    plan = plan_import(repo, directory, BRANCH.value)
    for notice in plan.notices:
        print(f"note: {notice}", file=sys.stderr)
    for step, commit in run_import(repo, plan):
        print(f"{step.folder.name} -> {commit.digest[:8]}")
    print(f"{len(plan.steps)} imported, {len(plan.skipped)} there already")


def export_commit(url: str, target: str) -> None:
    """Exports one commit."""
    repo = vcjax.Repository.open(url)
    plan = plan_export(repo, REVISION.value, Path(target), manager=MANAGER.value, force=FORCE.value)
    run_export(repo, plan)
    print(f"{plan.commit.digest[:8]} -> {plan.target}")


def main(argv: list[str]) -> None:
    """Converts what the flags name."""
    return_freed_memory()
    try:
        if SOURCE.value and not TARGET.value and len(argv) == 1:
            import_steps(SOURCE.value, REPO.value)
        elif TARGET.value and not SOURCE.value and len(argv) == 1:
            export_commit(REPO.value, TARGET.value)
        else:
            raise app.UsageError("give --source to import from, or --target to export to")
    except vcjax.VcjaxError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
