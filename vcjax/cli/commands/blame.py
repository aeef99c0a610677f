"""`vcjax blame`: the commit that last changed each leaf."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from absl import flags

from vcjax import hashing, report, tree
from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.report import Column, Line, Span, line, table

if TYPE_CHECKING:
    from vcjax.history import BlamedLeaf

COLUMNS = (
    Column("commit", style="yellow"),
    Column("leaf"),
    Column("part"),
    Column("date"),
    Column("author"),
    Column("message"),
)


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean(
        "chunks", False, "tell it of every part (chunk) of a leaf by itself", flag_values=values
    )


def run(session: Session) -> int:
    """Lists the leaves of a commit with the commits that last changed them."""
    repo, chunks = session.repo, session.flags.chunks
    commit = repo.resolve(session.argument(0, "HEAD"))
    found = repo.blame(commit, chunks=chunks, paths=session.args[1:] or None)
    commits = {leaf.commit.digest: leaf.commit for leaf in found}
    names = report.full_names(repo.refs.under("refs/").values()) if session.out.json else {}
    pruned = repo.prunings.among(commits)
    fields = {
        "commit": commit.digest,
        "leaves": [leaf.to_dict() for leaf in found],
        "commits": [
            report.commit_document(c, names.get(d, ()), pruned.get(d)) for d, c in commits.items()
        ],
    }
    session.out.report("blame", fields, _lines(found, chunks, pruned))
    return 0


def _lines(found: "Sequence[BlamedLeaf]", chunks: bool, pruned: Collection[str]) -> Iterator[Line]:
    rows = [_row(list(run), pruned) for _, run in groupby(found, _same)]
    shown = [i for i, column in enumerate(COLUMNS) if chunks or column.heading != "part"]
    rows = [[row[i] for i in shown] for row in rows]
    yield from table([COLUMNS[i] for i in shown], rows) if rows else [line("no leaves")]


def _same(leaf: "BlamedLeaf") -> tuple[str, str, str]:
    return leaf.path, leaf.commit.digest, leaf.old_path


def _row(run: "Sequence[BlamedLeaf]", pruned: Collection[str]) -> list[str | Span]:
    """A leaf, or a run of chunks of it, of one commit; marked if that has no data any more."""
    leaf, commit = run[0], run[0].commit
    moved = f" (was {leaf.old_path})" if leaf.old_path != leaf.path else ""
    part = _part(leaf, run[-1])
    date = report.format_time(commit.time)[:16]
    author = commit.author.partition(" <")[0]
    mark = f"{report.PRUNED.text} " if commit.digest in pruned else ""
    return [commit.digest[:8], leaf.path + moved, part, date, author, mark + commit.summary]


def _part(first: "BlamedLeaf", last: "BlamedLeaf") -> str:
    """What of the leaf the chunks cover: "[0:512, :]"; nothing if that is all of it."""
    if first.chunk is None or last.chunk is None or last.chunk - first.chunk + 1 == first.chunks:
        return ""
    shape, itemsize = first.spec.shape, tree.storage_dtype(first.spec.dtype).itemsize
    runs = hashing.chunk_runs(shape, itemsize, range(first.chunk, last.chunk + 1))
    return " ".join(_index(shape, hashing.chunk_slices(shape, itemsize, *run)) for run in runs)


def _index(shape: tuple[int, ...], slices: tuple[slice, ...]) -> str:
    """Slices as one writes them, without the axes at the end that are whole."""
    parts = [
        ":" if (part.start, part.stop) == (0, length) else f"{part.start}:{part.stop}"
        for part, length in zip(slices, shape, strict=True)
    ]
    while parts and parts[-1] == ":":
        parts.pop()
    return f"[{','.join(parts)}]"


COMMAND = Command(
    name="blame",
    summary="Show which commit last changed each leaf",
    usage="[REV [GLOB…]]",
    run=run,
    arguments=(0, None),
    define=define,
    details="Reads manifests alone. A leaf that moved is followed to its old path (the path that "
    "its content left in that commit), and what a merge took from a side is that side's. "
    "With --chunks a leaf larger than 4 MiB is followed in its parts as long as dtype and shape "
    "stay what they are, and neighbours of one commit are shown together.",
)
