"""`CheckpointManager`: Orbax's calls; every save is a commit."""

import copy
import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from absl import logging

from vcjax.errors import RevisionError, StepExistsError, VcjaxError
from vcjax.history import Commit, checked_metrics
from vcjax.orbax.options import (
    CheckpointManagerOptions,
    Step,
    checked_step,
    describe,
    dropped,
    ranked,
    rate,
)
from vcjax.repo import Repository


class CheckpointManager:
    """Saves and restores the steps of a training run in a repository.

    Each step is a commit on the current branch whose metadata hold the step, so
    everything else in vcjax works on it: `step:120` is a revision, `vcjax log`
    shows the metrics, `vcjax diff step:100 step:120` what training changed.

    Several managers may save to one branch. The tree of a step is a whole state:
    each step follows the one saved before it, by whomever, and nothing is merged.

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
        self._rated: dict[str, float | None] = {}  # by commit
        self._tip: str | None = None  # the commit that the steps were read from
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
        """Reads the steps anew, after other processes or `vcjax switch` have changed them.

        `save` and `delete` do so themselves when the branch has moved.
        """
        self.wait_until_finished()
        self.repo.refresh()
        self._tip = self._read_tip()
        self._steps = {}
        commits: dict[int, Commit] = {}
        if self._tip is not None:
            for commit in self.repo.log(self._tip, first_parent=True):
                if commit.step is not None:
                    commits.setdefault(commit.step, commit)
        pruned = self.repo.prunings.all()
        for step, commit in commits.items():
            if commit.digest not in pruned:
                self._steps[step] = Step(step, commit.digest, commit.metrics, self._rate(commit))

    def _read_tip(self) -> str | None:
        try:
            return self.repo.resolve("HEAD").digest
        except RevisionError:  # the branch has no commit yet
            return None

    def _follow(self) -> None:
        """Reads the steps anew if the branch has moved."""
        if self._read_tip() != self._tip:
            self.reload()

    def _rate(self, commit: Commit) -> float | None:
        """The score of a stored step; None, with a warning, if `best_fn` cannot tell."""
        if commit.digest not in self._rated:
            try:
                score = rate(commit.step or 0, commit.metrics, self.options)
            except VcjaxError as error:
                logging.warning("%s has no rank: %s", commit, error.message)
                score = None
            self._rated[commit.digest] = score
        return self._rated[commit.digest]

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
            VcjaxError: `step` is not an integer from 0.
            FileNotFoundError: no such step.
        """
        step = checked_step(step)
        self.wait_until_finished()
        return dict(self._require(step).metrics)

    def should_save(self, step: int) -> bool:
        """Whether `save` would save this step: the first, or a later multiple of the interval."""
        step = checked_step(step)
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
            step: number of the step, from 0.
            tree: any PyTree.
            metrics: {name: number}; without any the step has no rank.
            force: save although the interval, or a later step, says otherwise.
            overwrite: let the step stand for this tree from now on. The earlier
                one stays in history.
            message: of the commit; "step N" by default.

        Returns:
            Whether it was saved.

        Raises:
            StepExistsError: the step was saved already, by anybody, and not `overwrite`.
            VcjaxError: `step` is not an integer from 0, or `best_fn` fails.
            Exception: that of the step saved in the background before, if that
                failed. This step is not saved then.
        """
        step = checked_step(step)
        self._finish(instead_of=step)
        self._follow()
        if step in self._steps and not overwrite:
            raise StepExistsError(
                f"step {step} was saved already, as commit {self._steps[step].commit[:8]}",
                hint="overwrite=True replaces it; its former state stays in `vcjax log`",
            )
        if not (force or overwrite or self.should_save(step)):
            return False
        numbers = checked_metrics(metrics)
        rate(step, numbers, self.options)  # fails before anything is committed
        commit = self.repo.commit
        if self.options.enable_async_checkpointing:
            commit = self.repo.commit_async
        saved = commit(tree, message or f"step {step}", metadata={"step": step}, metrics=numbers)
        if isinstance(saved, Commit):
            self._saved(step, saved)
        else:
            self._saving = step, saved
        return True

    def _saved(self, step: int, commit: Commit) -> None:
        if commit.parents != (() if self._tip is None else (self._tip,)):
            self.reload()  # somebody was faster, and this step follows theirs
        self._tip = commit.digest
        self._steps[step] = Step(step, commit.digest, commit.metrics, self._rate(commit))
        gone = dropped(list(self._steps.values()), self.options)
        if gone:
            report = self.repo.prune([other.commit for other in gone], describe(self.options))
            for other in gone:
                if other.commit in report.commits:  # else a ref points to it
                    del self._steps[other.step]

    def wait_until_finished(self) -> None:
        """Waits for the step that is being saved.

        Raises:
            Exception: what went wrong, once. The step is not among `all_steps` then.
        """
        self._finish()

    def _finish(self, instead_of: int | None = None) -> None:
        """Waits for the step that is being saved.

        Args:
            instead_of: the step that is not saved if the one before has failed.
        """
        if self._saving is None:
            return
        step, future = self._saving
        self._saving = None
        failure = future.exception()
        if failure is None:
            self.repo.wait_until_finished()
            self._saved(step, future.result())
            return
        try:
            self.repo.wait_until_finished()  # raises what `failure` is, and then no more
        except Exception as error:
            if error is not failure:
                logging.error("a commit besides step %d failed too: %s", step, error)
        text = f"step {step}, saved in the background, failed"
        also = "" if instead_of is None else f"; step {instead_of} was not saved"
        if isinstance(failure, VcjaxError):
            named = copy.copy(failure)
            named.message = f"{text}: {failure.message}{also}"
            raise named from failure
        failure.add_note(text + also)
        raise failure

    def is_saving_in_progress(self) -> bool:
        """Whether a step is being saved."""
        return self._saving is not None and not self._saving[1].done()

    def restore(self, step: int | None = None, like: Any = None) -> Any:
        """The tree of a step.

        Args:
            step: the latest by default.
            like: as for `Repository.restore`.

        Raises:
            VcjaxError: `step` is not an integer from 0.
            FileNotFoundError: there is no such step, or none at all.
            StructureError: it does not fit `like`.
        """
        step = None if step is None else checked_step(step)
        self.wait_until_finished()
        if step is None:
            step = self.latest_step()
            if step is None:
                raise FileNotFoundError(f"no step has been saved in {self.directory}")
        return self.repo.restore(self.repo.resolve(self._require(step).commit), like)

    def delete(self, step: int) -> None:
        """Lets the data of a step go. The commit stays in the log.

        Raises:
            FileNotFoundError: no such step.
            VcjaxError: it is the latest step, or a branch or tag points to it; or
                `step` is not an integer from 0.
        """
        step = checked_step(step)
        self.wait_until_finished()
        self._follow()
        commit = self._require(step).commit
        if step == self.latest_step():
            raise VcjaxError(
                f"step {step} is the latest one, which cannot be deleted",
                hint="save a later step first, or take the branch back with `vcjax undo`",
            )
        if self.repo.prune([commit], "delete()").spared:
            raise VcjaxError(
                f"step {step} is not deleted: a branch, a tag or HEAD points to its commit "
                f"{commit[:8]}",
                hint="`vcjax log` shows which; move or delete it, or commit to the branch, first",
            )
        del self._steps[step]

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
