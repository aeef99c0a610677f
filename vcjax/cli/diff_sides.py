"""The two sides of `vcjax diff`: commits, checkpoint files, or one of each."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcjax import diffing
from vcjax.cli.session import Session
from vcjax.errors import RepositoryNotFoundError, RevisionError

if TYPE_CHECKING:
    from vcjax.diffing import Content, TreeDiff


@dataclass(frozen=True)
class Side:
    """A tree whose leaves can be compared by digest and read piece by piece.

    Attributes:
        name: as the user wrote it.
        root: `Node`s with payloads that have `spec`, `digest` and `chunks`.
        content: where the contents of the leaves are.
        commit: digest of the commit; None for a file.
        unread: why its data are gone, if they are.
    """

    name: str
    root: Any
    content: "Content"
    commit: str | None = None
    unread: tuple[str, ...] = ()


def side(session: Session, name: str) -> Side:
    """What a word of the command line names: a revision, else a file.

    Raises:
        RevisionError: it is neither.
    """
    try:
        return _commit_side(session, name)
    except (RevisionError, RepositoryNotFoundError) as error:
        if Path(name).is_file():
            return _file_side(name)
        if isinstance(error, RevisionError):
            either = "there is no file of this name either; globs go after A and B, or into --paths"
            error.add_hint(either)
        raise


def _commit_side(session: Session, name: str) -> Side:
    from vcjax.repo import diff as comparing  # loads JAX

    repo = session.repo
    commit = repo.resolve(name)
    root, content = comparing.side(repo.manifest(commit), repo.objects)
    return Side(name, root, content, commit.digest, repo.prunings.reasons([commit]))


def _file_side(name: str) -> Side:
    from vcjax.cli.file_content import open_file  # loads JAX

    return Side(name, *open_file(name))


def compare(
    old: Side, new: Side, stats: Any, globs: list[str] | None, base: Side | None = None
) -> "TreeDiff":
    """What changed from one side to the other.

    Args:
        old: one side.
        new: the other.
        stats: whether to read the leaves that changed and compute figures; see
            `vcjax.diffing.examine`.
        globs: leaf path globs: only these leaves.
        base: what both come from, if it is to be compared with.

    Commits without data are compared by digests alone, and the diff says so.
    """
    unread = old.unread + new.unread + (() if base is None else base.unread)
    found = _compare(old, new, False if unread else stats, globs, base)
    return replace(found, unread=unread) if stats else found


def _compare(
    old: Side, new: Side, stats: Any, globs: list[str] | None, base: Side | None
) -> "TreeDiff":
    if not stats and base is None:
        return diffing.compare(old.root, new.root).matching(globs)
    sides = (old.root, old.content), (new.root, new.content)
    if base is None:
        return diffing.examine(*sides, stats, globs)
    return diffing.examine_sides(*sides, (base.root, base.content), stats, globs)
