"""`vcjax commit`: record a checkpoint file."""

from pathlib import Path
from typing import Any

from absl import flags

from vcjax import formats, report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.session import Session
from vcjax.cli.values import json_pairs, metrics

FILE_KEY = "file"
"""Where a commit's metadata tells which file it was made of: its format and own metadata."""


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "message",
        None,
        "`TEXT` that says why; else the name of the file",
        short_name="m",
        flag_values=values,
    )
    flags.DEFINE_string(
        "branch",
        None,
        "`NAME` of the branch to commit to, made if there is none; else the current one",
        short_name="b",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "metric", [], "`NAME=NUMBER` to record; may be repeated", flag_values=values
    )
    flags.DEFINE_multi_string(
        "metadata",
        [],
        "`KEY=JSON` to record (text where it is no JSON); may be repeated",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "step", None, "training `STEP`; step:STEP then names the commit", flag_values=values
    )
    flags.DEFINE_string(
        "author", None, "`NAME <ADDRESS>`; else VCJAX_AUTHOR, else this user", flag_values=values
    )
    flags.DEFINE_string(
        "format", None, "`FORMAT` of the file, whatever it is called", flag_values=values
    )


def run(session: Session) -> int:
    """Commits the tree in a file."""
    values, path = session.flags, Path(session.args[0])
    noted = _metadata(values)
    numbers = metrics(values.metric)
    repo = session.repo
    with session.out.status(f"committing {path}"):
        form = formats.format_named(values.format) if values.format else formats.format_of(path)
        checkpoint = form.read(path)
        commit = repo.commit(
            checkpoint.tree,
            path.name if values.message is None else values.message,
            branch=values.branch,
            metadata={FILE_KEY: {"format": form.name, "metadata": checkpoint.metadata}, **noted},
            metrics=numbers,
            author=values.author or session.author,
        )
    branch = values.branch or repo.head.branch
    session.out.line(f"[{branch or 'detached HEAD'} {commit.digest[:8]}] {commit.summary}")
    session.out.line(f" {commit.leaves:,} leaves, {report.format_bytes(commit.nbytes)}")
    session.out.document("commit", {"branch": branch, "commit": report.commit_document(commit)})
    return 0


def _metadata(values: Any) -> dict[str, Any]:
    noted = json_pairs("metadata", values.metadata)
    if values.step is not None:
        noted["step"] = values.step
    if FILE_KEY in noted:
        raise UsageError(
            f"--metadata={FILE_KEY}=…: vcjax keeps the file's own metadata under this key",
            hint="choose another key",
        )
    return noted


COMMAND = Command(
    name="commit",
    summary="Record a checkpoint file (safetensors, Flax msgpack, npz)",
    usage="FILE",
    run=run,
    arguments=(1, 1),
    define=define,
    details="Leaves whose content is stored already cost no bytes. The metadata that the file "
    "holds are kept, and written again by `vcjax checkout`.",
)
