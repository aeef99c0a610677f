"""`vcjax init`: make a repository."""

import os

from absl import flags

from vcjax import repo
from vcjax.cli.command import Command
from vcjax.cli.session import Session


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("branch", "main", "`NAME` of the first branch", flag_values=values)
    flags.DEFINE_boolean(
        "compress",
        False,
        "compress leaf objects: a sixth smaller for float32 weights, slower to save",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Makes a repository and says where it is."""
    from vcjax.repo.settings import FOLDER  # loads TensorStore

    url = session.argument(0, session.url or os.path.join(os.getcwd(), FOLDER))
    made = repo.Repository.init(url, branch=session.flags.branch, compress=session.flags.compress)
    session.out.line(f"Made a repository in {made.url}")
    session.out.document(
        "init",
        {"url": made.url, "branch": made.head.branch, "compress": made.settings.compress},
    )
    return 0


COMMAND = Command(
    name="init",
    summary="Make a repository",
    usage="[URL]",
    run=run,
    arguments=(0, 1),
    define=define,
    details="Without a URL (a path, file://, s3:// or gs://) the repository is the folder .vcjax "
    "in the current folder; commands find it from there and from all folders below.",
)
