"""What the processes of a program tell each other on the way to a save.

First a `Plan`, which process 0 makes for all. Then every process turns its arguments into
a tree; whoever fails at that says so in the place of the commit that the others begin.
"""

import itertools
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vcjax.errors import ProcessError
from vcjax.orbax.manager.step import Step
from vcjax.repo import Repository

PREFIX = ".vcjax-item-"
"""Of the names of folders that handlers write to together."""


@dataclass(frozen=True)
class Plan:
    """What is saved.

    Attributes:
        step: its commit is not known yet.
        gone: the steps that lose their data once it is saved.
        token: a name that no other save has.
    """

    step: Step
    gone: Sequence[int]
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def told(self) -> dict[str, Any]:
        """As MessagePack types."""
        return {
            "step": self.step.step,
            "time": self.step.time.isoformat(),
            "metrics": json.dumps(self.step.metrics),  # integers of any size
            "score": self.step.score,
            "gone": list(self.gone),
            "token": self.token,
            "is_followed": True,
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Plan":
        """The plan that process 0 has told."""
        moment, metrics = datetime.fromisoformat(told["time"]), json.loads(told["metrics"])
        step = Step(told["step"], moment, metrics, score=told["score"])
        return cls(step, told["gone"], told["token"])


def same_step(brought: Sequence[Sequence[Any]]) -> int:
    """The step that all processes save.

    Args:
        brought: by each process, the step first.

    Raises:
        ProcessError: they save different ones.
    """
    step = brought[0][0]
    for process, (other, *_) in enumerate(brought):
        if other != step:
            raise ProcessError(
                f"process {process} saves step {other}, and process 0 step {step}",
                hint="every process must make the same calls in the same order",
            )
    return step


class Sharing:
    """The processes that save a step, between their plan and the commit.

    Leaving the `with` block by an exception tells the others, unless they know already.

    Args:
        repo: the repository; None for a save that nobody takes part in.
        token: of the plan.

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

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not self.is_over and self._repo is not None:
            self._repo.processes.decline(error)

    @property
    def leads(self) -> bool:
        """Whether this process acts for all."""
        if self._repo is None:
            return True
        import jax

        return jax.process_index() == 0

    def agree(self, finish: Callable[[], Any], work: Callable[[], Any]) -> None:
        """Works on all processes; then finishes on one. What fails on one, fails on all."""
        if self._repo is None:
            work()
            finish()
            return

        def bring() -> None:
            work()

        def find(_: Any) -> None:
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
