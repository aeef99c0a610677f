"""The processes of a program on the way to a save.

Every process turns its arguments into a tree; whoever fails at that says so in the place of
the commit that the others begin. Handlers that write files write to one folder together.
"""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from vcjax.repo import Repository

PREFIX = ".vcjax-item-"
"""Of the names of folders that handlers write to together."""


class Sharing:
    """The processes that save a step, between agreeing on it and the commit.

    Leaving the `with` block by an exception tells the others, unless they know already.

    Args:
        repo: the repository; None for a save that nobody takes part in.
        token: a name that no other save has.

    Attributes:
        is_over: whether there is nothing more to tell.
    """

    def __init__(self, repo: Repository | None, token: str):
        self._repo = repo if repo is not None and repo.processes.is_shared else None
        self._token = token
        self._numbers = itertools.count()
        self.is_over = False

    @classmethod
    def alone(cls) -> "Sharing":
        """Of one process."""
        return cls(None, "")

    def __enter__(self) -> "Sharing":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self.is_over and self._repo is not None:
            self._repo.processes.decline(error)

    @property
    def leads(self) -> bool:
        """Whether this process acts for all."""
        if self._repo is None:
            return True
        import jax

        return jax.process_index() == 0

    def agree(self, finish: Callable[[], object], work: Callable[[], object]) -> None:
        """Works on all processes; then finishes on one. What fails on one, fails on all."""
        if self._repo is None:
            work()
            finish()
            return

        def bring() -> None:
            work()

        def find(_: object) -> None:
            finish()

        self.is_over = True  # whatever fails now is told by this
        self._repo.processes.agree(find, bring)
        self.is_over = False

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder, the same for all processes where the repository is in one.

        In a bucket each has its own, and what the others write to theirs is not saved.
        """
        place = None if self._repo is None else self._repo.store.location.folder
        if place is None:
            with tempfile.TemporaryDirectory(prefix="vcjax-item-") as name:
                yield Path(name)
            return
        folder = place / f"{PREFIX}{self._token}-{next(self._numbers)}"
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            if self.leads:
                shutil.rmtree(folder, ignore_errors=True)


def clean_folders(repo: Repository, older_s: float) -> None:
    """Deletes folders that handlers wrote to when they were killed.

    Args:
        older_s: spare what is younger than this, seconds.
    """
    place = repo.store.location.folder
    for folder in place.glob(f"{PREFIX}*") if place is not None else ():
        if time.time() - folder.stat().st_mtime > older_s:
            shutil.rmtree(folder, ignore_errors=True)
