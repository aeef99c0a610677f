"""`vcjax checkout`: write a commit's tree to a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vcjax import formats
from vcjax.cli.command import Command
from vcjax.cli.commands.commit import FILE_KEY
from vcjax.cli.session import Session
from vcjax.formats.files import refuse_protected

if TYPE_CHECKING:
    from vcjax.history import Commit


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list(
        "paths", None, "`GLOB,…` of leaf paths: write only these leaves", flag_values=values
    )
    flags.DEFINE_string(
        "format", None, "`FORMAT` of the file, whatever it is called", flag_values=values
    )
    flags.DEFINE_boolean(
        "force",
        False,
        "write through a symbolic link, and replace a read-only file",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Restores a commit and writes it to a file."""
    values, (revision, name) = session.flags, session.args
    form = (
        formats.format_named(values.format)
        if values.format
        else formats.format_of(name, for_writing=True)
    )
    repo = session.repo
    commit = repo.resolve(revision)
    if not values.force:
        refuse_protected(Path(name), "--force")
    with session.out.status(f"restoring {revision}"):
        tree = repo.restore(commit, paths=values.paths)
        form.write(Path(name), tree, _file_metadata(commit, form.name))
    session.out.line(f"Wrote {commit.digest[:8]} to {name}")
    session.out.document(
        "checkout", {"commit": commit.digest, "file": name, "file_format": form.name}
    )
    return 0


def _file_metadata(commit: "Commit", form: str) -> dict[str, Any]:
    """The metadata that a file of this format gave to the commit; formats refuse each other's."""
    noted = commit.metadata.get(FILE_KEY)
    if not isinstance(noted, dict) or noted.get("format") != form:
        return {}
    metadata = noted.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


COMMAND = Command(
    name="checkout",
    summary="Write the tree of a commit to a checkpoint file",
    usage="REV FILE",
    run=run,
    arguments=(2, 2),
    define=define,
    details="The suffix of the file, or --format, chooses the format. A file of the format that "
    "was committed gets the metadata back that it had. The file is replaced in one step, a "
    "symbolic link or read-only file only with --force; HEAD stays where it is (`vcjax switch` "
    "moves it).",
)
