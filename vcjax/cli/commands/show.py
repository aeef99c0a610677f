"""`vcjax show`: one commit in detail, or one leaf of it."""

import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from vcjax import diffing, report
from vcjax.cli.command import Command, UsageError
from vcjax.cli.leaf_argument import leaf_argument
from vcjax.cli.session import Session

if TYPE_CHECKING:
    from vcjax.history import Commit, LeafEntry


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_boolean(
        "raw",
        False,
        "of a leaf, write the value alone: text as it is, an array as its bytes in C order, "
        "little-endian",
        flag_values=values,
    )


def run(session: Session) -> int:
    """Shows who, when, why, how derived, and how many leaves it changes; or a leaf."""
    commit, path = leaf_argument(session.repo, session.argument(0, "HEAD"))
    if path is not None:
        return _leaf(session, commit, path)
    if session.flags.raw:
        raise UsageError("--raw is of a leaf", hint="vcjax show --raw REV:PATH")
    repo = session.repo
    refs = [*repo.refs.under("refs/").values(), *repo.refs.under("aliases/").values()]
    names = report.decorations(repo.head, refs).get(commit.digest, [])
    full = report.full_names(refs).get(commit.digest, [])
    pruning = repo.prunings.get(commit.digest)
    counts = None
    if commit.parents:
        parent = repo.history.commit(commit.parents[0])
        counts = diffing.compare(repo.manifest(parent).root, repo.manifest(commit).root).counts
    session.out.report(
        "show",
        {"commit": report.commit_document(commit, full, pruning), "changes": counts},
        report.details(commit, names, counts, pruning),
    )
    return 0


def _leaf(session: Session, commit: "Commit", path: str) -> int:
    if session.flags.raw and session.out.json:
        raise UsageError("--raw and --json cannot both be printed", hint="leave one out")
    entry = session.repo.manifest(commit).leaves[path]
    content = _content(session, commit, path, entry)
    if session.flags.raw:
        _write_raw(content)
        return 0
    fields = {
        "commit": commit.digest,
        "path": path,
        "digest": entry.digest,
        "home": entry.spec.home,
    }
    fields |= {"nbytes": entry.nbytes, **report.leaf_document(entry.spec, content)}
    session.out.report("leaf", fields, report.leaf_lines(path, entry.spec, content))
    return 0


def _content(session: Session, commit: "Commit", path: str, entry: "LeafEntry") -> Any:
    """The value of a leaf, or all of its array. What is in the manifest outlives the data.

    Raises:
        PrunedError: the data of the commit were let go.
    """
    if not entry.is_inline:
        session.repo.require_data(commit)
    if entry.spec.is_value:
        return entry.value
    return dict(session.repo.objects.read({path: entry}))[path]


def _write_raw(content: Any) -> None:
    sys.stdout.flush()
    if isinstance(content, str | bytes):
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    elif hasattr(content, "tobytes"):
        data = content.tobytes()
    else:
        data = repr(content).encode()
    sys.stdout.buffer.write(data)


COMMAND = Command(
    name="show",
    summary="Show a commit in detail, with its metadata and provenance, or one of its leaves",
    usage="[REV | REV:PATH]",
    run=run,
    arguments=(0, 1),
    define=define,
    details="Of a leaf, REV:PATH (:PATH of HEAD), a plain value is printed as it is; of an array "
    "dtype, shape, size, statistics (norm is L2; norm, min, max, mean and std are of its finite "
    "elements) and the elements themselves, or a corner of more than 8. The value of a leaf that "
    "is in the manifest is shown even where the data of the commit are gone.",
)
