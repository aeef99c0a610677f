"""`CheckpointManager`: Orbax's calls; every save is a commit."""

import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from vcjax.errors import RevisionError, StepExistsError
from vcjax.history import Commit
from vcjax.orbax.options import CheckpointManagerOptions, Step, describe, dropped, ranked
from vcjax.repo import Repository


class CheckpointManager:
    """Saves and restores the steps of a training run in a repository.

    Each step is a commit on the current branch whose metadata hold the step, so
    everything else in vcjax works on it: `step:120` is a revision, `vcjax log`
    shows the metrics, `vcjax diff step:100 step:120` what training changed.

    Example:
        >>> import tempfile, numpy as np
        >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
        ...     saved = manager.save(1, {"w": np.ones(3)}, metrics={"loss": 0.5})
        ...     manager.latest_step()
        1

    Args:
        directory: path or URL of the repository.
        options: what to save and keep.

    Raises:
        RepositoryNotFoundError: there is none and `options.create` is off.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        options: CheckpointManagerOptions | None = None,
    ):
        self.options = options or CheckpointManagerOptions()
        if self.options.create:
            self.repo = Repository.init(directory, exist_ok=True)
        else:
            self.repo = Repository.open(directory)
        self._steps: dict[int, Step] = {}
        self._saving: tuple[int, Future[Commit]] | None = None
        self.reload()

    @property
    def directory(self) -> str:
        """Path or URL of the repository."""
        return self.repo.url

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reload(self) -> None:
        """Reads the steps anew, after other processes or `vcjax switch` have changed them."""
        self.wait_until_finished()
        self._steps = {}
        pruned = self.repo.prunings.all()
        try:
            commits = list(self.repo.log(first_parent=True))
        except RevisionError:  # the branch has no commit yet
            return
        for commit in commits:
            if commit.step is not None and commit.digest not in pruned:
                self._steps.setdefault(commit.step, _step(commit, commit.step))

    def all_steps(self) -> list[int]:
        """The steps that can be restored, ascending; the one being saved included."""
        saving = {self._saving[0]} if self._saving else set()
        return sorted(saving.union(self._steps))

    def latest_step(self) -> int | None:
        """The largest step; None if there is none."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The best step by `best_fn`; the latest one without it or without metrics."""
        self.wait_until_finished()
        best = ranked(list(self._steps.values()), self.options)
        return best[0].step if best else self.latest_step()

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics of a step.

        Raises:
            FileNotFoundError: no such step.
        """
        self.wait_until_finished()
        return dict(self._require(step).metrics)

    def should_save(self, step: int) -> bool:
        """Whether `save` would save this step: the first, or a later multiple of the interval."""
        latest = self.latest_step()
        if latest is None:
            return True
        return step > latest and step % self.options.save_interval_steps == 0

    def save(
        self,
        step: int,
        tree: Any,
        metrics: Mapping[str, Any] | None = None,
        *,
        force: bool = False,
        overwrite: bool = False,
        message: str | None = None,
    ) -> bool:
        """Commits a tree as a step. Leaves that did not change cost no bytes.

        Args:
            step: number of the step.
            tree: any PyTree.
            metrics: {name: number}.
            force: save although the interval, or a later step, says otherwise.
            overwrite: let the step stand for this tree from now on. The earlier
                one stays in history.
            message: of the commit; "step N" by default.

        Returns:
            Whether it was saved.

        Raises:
            StepExistsError: the step was saved already, and not `overwrite`.
        """
        self.wait_until_finished()
        if step in self._steps and not overwrite:
            raise StepExistsError(
                f"step {step} was saved already, as commit {self._steps[step].commit[:8]}",
                hint="overwrite=True replaces it; its former state stays in `vcjax log`",
            )
        if not (force or overwrite or self.should_save(step)):
            return False
        commit = self.repo.commit
        if self.options.enable_async_checkpointing:
            commit = self.repo.commit_async
        saved = commit(
            tree, message or f"step {step}", metadata={"step": int(step)}, metrics=metrics
        )
        if isinstance(saved, Commit):
            self._saved(step, saved)
        else:
            self._saving = step, saved
        return True

    def _saved(self, step: int, commit: Commit) -> None:
        self._steps[step] = _step(commit, step)
        gone = dropped(list(self._steps.values()), self.options)
        if gone:
            self.repo.prune([other.commit for other in gone], describe(self.options))
            for other in gone:
                del self._steps[other.step]

    def wait_until_finished(self) -> None:
        """Waits for the step that is being saved.

        Raises:
            Exception: what went wrong, once. The step is not among `all_steps` then.
        """
        if self._saving is None:
            return
        step, future = self._saving
        self._saving = None
        self.repo.wait_until_finished()
        self._saved(step, future.result())

    def is_saving_in_progress(self) -> bool:
        """Whether a step is being saved."""
        return self._saving is not None and not self._saving[1].done()

    def restore(self, step: int | None = None, like: Any = None) -> Any:
        """The tree of a step.

        Args:
            step: the latest by default.
            like: as for `Repository.restore`.

        Raises:
            FileNotFoundError: there is no such step, or none at all.
            StructureError: it does not fit `like`.
        """
        self.wait_until_finished()
        if step is None:
            step = self.latest_step()
            if step is None:
                raise FileNotFoundError(f"no step has been saved in {self.directory}")
        return self.repo.restore(self.repo.resolve(self._require(step).commit), like)

    def delete(self, step: int) -> None:
        """Lets the data of a step go. The commit stays in the log; the latest one cannot go.

        Raises:
            FileNotFoundError: no such step.
        """
        self.wait_until_finished()
        self.repo.prune([self._require(step).commit], "delete()")
        self.reload()

    def _require(self, step: int) -> Step:
        if step not in self._steps:
            known = ", ".join(map(str, self.all_steps()[-5:])) or "none"
            raise FileNotFoundError(
                f"there is no step {step} in {self.directory}; the latest are: {known}"
            )
        return self._steps[step]

    def close(self) -> None:
        """Waits for the step that is being saved; raises what went wrong."""
        self.wait_until_finished()


def _step(commit: Commit, step: int) -> Step:
    return Step(step, commit.digest, commit.metrics)
