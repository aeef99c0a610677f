"""`vcjax ls`: the leaves of a commit."""

from typing import TYPE_CHECKING

from vcjax import tree
from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.errors import RevisionError, TreeError
from vcjax.report import Column, format_bytes, line, table

if TYPE_CHECKING:
    from vcjax.history import Commit, LeafEntry

COLUMNS = (
    Column("leaf"),
    Column("dtype"),
    Column("shape"),
    Column("size", right=True),
    Column("digest", style="yellow"),
)


def run(session: Session) -> int:
    """Lists leaves: path, dtype, shape, size in memory and digest."""
    commit, glob = _asked(session)
    leaves = session.repo.manifest(commit).leaves
    chosen = {path: leaves[path] for path in tree.select(leaves, glob)}
    pruning = session.repo.prunings.get(commit.digest)
    size = sum(entry.nbytes for entry in chosen.values())
    rows = [_row(path, entry) for path, entry in chosen.items()]
    gone = "" if pruning is None else f"; {pruning}"
    total = line(f"{len(chosen):,} leaves, {format_bytes(size)}{gone}")
    session.out.report(
        "ls",
        {
            "commit": commit.digest,
            "pruned": None if pruning is None else pruning.to_dict(),
            "leaves": [_document(*item) for item in chosen.items()],
        },
        [*(table(COLUMNS, rows) if rows else ()), total],
    )
    return 0


def _asked(session: Session) -> "tuple[Commit, str | None]":
    """The commit and the glob; a single argument may be either."""
    repo, args = session.repo, session.args
    if len(args) != 1:
        return repo.resolve(session.argument(0, "HEAD")), args[1] if args else None
    try:
        return repo.resolve(args[0]), None
    except RevisionError as error:
        try:
            commit = repo.resolve("HEAD")
            tree.select(repo.manifest(commit).leaves, args[0])
        except RevisionError:
            raise error from None
        except TreeError:
            if any(wildcard in args[0] for wildcard in "*?["):
                raise
            raise error from None
        return commit, args[0]


def _row(path: str, entry: "LeafEntry") -> list[str]:
    shape = ",".join(map(str, entry.spec.shape))
    size = "" if entry.spec.is_value else format_bytes(entry.nbytes)
    shown = "" if entry.spec.is_value else f"[{shape}]"
    return [path, entry.spec.dtype, shown, size, entry.digest[:8]]


def _document(path: str, entry: "LeafEntry") -> dict[str, object]:
    return {
        "path": path,
        "dtype": entry.spec.dtype,
        "shape": list(entry.spec.shape),
        "home": entry.spec.home,
        "nbytes": entry.nbytes,
        "digest": entry.digest,
    }


COMMAND = Command(
    name="ls",
    summary="List the leaves of a commit: path, dtype, shape, size, digest",
    usage="[REV] [GLOB]",
    run=run,
    arguments=(0, 2),
    details="GLOB selects leaf paths: `*` stays within a part of the path, `**` crosses `/`; "
    "a path without wildcards stands for all that is below it. A single argument that names no "
    "revision is taken as a GLOB for HEAD.",
)
