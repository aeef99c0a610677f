"""REV:PATH on the command line: a leaf of a commit."""

from typing import TYPE_CHECKING

from vcjax.errors import RevisionError, TreeError

if TYPE_CHECKING:
    from vcjax.history import Commit
    from vcjax.repo import Repository


def leaf_argument(repo: "Repository", text: str) -> "tuple[Commit, str | None]":
    """The commit that a word names, and the leaf path, if it is REV:PATH.

    Revisions and leaf paths may hold colons (`step:1200`): what names a commit as a whole
    is one; else the first colon before which one is named divides. `:PATH` is of HEAD.

    Raises:
        RevisionError: no part of it names a commit.
        TreeError: the commit has no such leaf.
    """
    try:
        return repo.resolve(text), None
    except RevisionError as error:
        places = [i for i, character in enumerate(text) if character == ":"]
        for place in places:
            try:
                commit = repo.resolve(text[:place] or "HEAD")
            except RevisionError:
                continue
            return commit, _checked(repo, commit, text[place + 1 :])
        raise error


def _checked(repo: "Repository", commit: "Commit", path: str) -> str:
    leaves = repo.manifest(commit).leaves
    if path in leaves:
        return path
    below = any(other.startswith(f"{path}/") for other in leaves)
    what = "is no leaf, there are leaves below it" if below else "is no leaf"
    shown = f" '{path}'" if below else ""
    raise TreeError(
        f"{path!r} {what} of {commit.digest[:8]}",
        hint=f"`vcjax ls {commit.digest[:8]}{shown}` lists the leaf paths",
        path=path,
    )
