"""What a path stands for that a checkpointer is given: a repository, a step of it, an item."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vcjax.errors import RepositoryExistsError, RepositoryNotFoundError, RevisionError
from vcjax.history import Commit
from vcjax.repo import Repository

AnyPath = str | os.PathLike[str]

_ORBAX_FILES = ("_CHECKPOINT_METADATA", "_METADATA")


class Place(NamedTuple):
    """What a path stands for: a commit, or one item of it."""

    repo: Repository
    commit: Commit
    item: str | None = None


def repository_for(directory: AnyPath, force: bool) -> Repository:
    """The repository to save to, by this process alone; made if there is nothing.

    Raises:
        ValueError: something is there, and not `force`.
        RepositoryExistsError: something other than a repository is.
    """
    try:
        repo = Repository.open(directory, local=True)
    except RepositoryNotFoundError:
        path = Path(os.fspath(directory))
        if "://" not in os.fspath(directory) and path.exists():
            if not force:
                raise ValueError(f"Destination {directory} already exists.") from None
            if not path.is_dir() or any(path.iterdir()):
                raise RepositoryExistsError(
                    f"{directory} holds something that is no repository, which is not deleted",
                    hint="delete it yourself, or save to another path",
                ) from None
        return Repository.init(directory, local=True)
    if not force and repo.branches:
        raise ValueError(f"Destination {directory} already exists.")
    return repo


def is_orbax(directory: AnyPath) -> bool:
    """Whether Orbax itself saved something at a path."""
    path = Path(os.fspath(directory))
    return any((path / name).exists() for name in _ORBAX_FILES)


def locate_saved(directory: AnyPath, opened: Callable[[AnyPath], Repository]) -> Place:
    """The commit, or the item of one, that a path stands for.

    Args:
        directory: the path.
        opened: gives the repository at a path.

    Raises:
        FileNotFoundError: there is nothing.
    """
    path = Path(os.fspath(directory))
    candidates: list[tuple[AnyPath, str, str | None]] = [
        (directory, "HEAD", None),
        (path.parent, _step_of(path.name), None),
        (path.parent.parent, _step_of(path.parent.name), path.name),
    ]
    for folder, revision, item in candidates:
        if revision:
            with suppress(RepositoryNotFoundError, RevisionError):
                repo = opened(folder)
                return Place(repo, repo.resolve(revision), item)
    raise FileNotFoundError(f"Checkpoint at {directory} not found.")


def _step_of(name: str) -> str:
    """The revision that a folder with Orbax's name for a step stands for; "" if it is none."""
    number = re.search(r"\d+$", name)
    return "" if number is None else f"step:{int(number[0])}"
