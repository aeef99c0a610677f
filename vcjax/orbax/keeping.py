"""The steps of a branch as a manager keeps them: in step with commits, saves and pruning."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Any

from absl import logging

from vcjax.errors import RevisionError, VcjaxError
from vcjax.history import Commit
from vcjax.history.refs import HEAD, HEADS
from vcjax.orbax.contents import metrics_of
from vcjax.orbax.folders import StepFolders
from vcjax.orbax.policies import rate
from vcjax.orbax.steps import Step, StepIndex
from vcjax.repo import Repository

TIMEOUT_SECONDS = 1200
"""How long a save in the background may take; the default of Orbax's AsyncOptions."""


@dataclass(frozen=True)
class Saving:
    """A save under way.

    Attributes:
        step: what is being saved.
        replaced: the step with the same number before.
        gone: steps that lose their data once it is saved.
        future: the commit.
    """

    step: Step
    replaced: Step | None
    gone: tuple[Step, ...]
    future: Future[Commit]


class StepKeeper:
    """Knows the steps on the current branch, and lets the data of dropped ones go.

    Args:
        repo: the repository.
        options: the manager's, for `best_fn`.
        policy: the retention policy in words.
    """

    def __init__(self, repo: Repository, options: Any, policy: str = ""):
        self.repo = repo
        self.index = StepIndex()
        self.dropped: dict[int, str] = {}  # step -> commit whose data were let go
        self.root_metadata: dict[str, Any] = {}
        self._options, self._policy = options, policy
        self._timeout = getattr(options.async_options, "timeout_secs", TIMEOUT_SECONDS)
        self._callback = getattr(options.async_options, "post_finalization_callback", None)
        self._folders = StepFolders(repo.store.location.folder, options)
        self._rated: dict[str, float | None] = {}  # by commit
        self._tip: str | None = None  # the commit that the steps were read from
        self._saving: Saving | None = None
        self._failure: tuple[int, BaseException] | None = None
        self._lock = threading.RLock()  # of `index` and `dropped`
        self._worker: ThreadPoolExecutor | None = None
        self._retiring: list[Future[None]] = []

    # -- what there is ---------------------------------------------------------

    def reload(self) -> None:
        """Reads all steps anew."""
        self.settle()
        self._retired()
        self.repo.refresh()
        self._tip = self._read_tip()
        commits: dict[int, Commit] = {}
        if self._tip is not None:
            for commit in self.repo.log(self._tip, first_parent=True):
                if commit.step is not None:
                    commits.setdefault(commit.step, commit)
            self._note_root_metadata(self.repo.history.commit(self._tip))
        pruned = self.repo.prunings.all()
        with self._lock:
            kept = [commit for commit in commits.values() if commit.digest not in pruned]
            self.index = StepIndex(map(self._step_of, kept))
            self.dropped = {
                step: commit.digest for step, commit in commits.items() if commit.digest in pruned
            }

    def follow(self) -> None:
        """Takes note of what others have committed; of as many commits, and no more."""
        tip = self._read_tip()
        if tip == self._tip:
            return
        new: list[Commit] = []
        if tip is not None and self._tip is not None:
            known = self.repo.history.commit(self._tip).generation
            for commit in self.repo.log(tip, first_parent=True):
                if commit.digest == self._tip:
                    self.repo.refresh()
                    self._tip = tip
                    with self._lock:
                        for added in reversed(new):
                            self._add(added)
                    return
                if commit.generation <= known:
                    break
                new.append(commit)
        self.reload()  # the branch has gone elsewhere

    def _add(self, commit: Commit) -> None:
        if commit.step is not None:
            self.index.add(self._step_of(commit))
            self.dropped.pop(commit.step, None)

    def _note_root_metadata(self, commit: Commit) -> None:
        fields = commit.metadata.get("orbax")
        if isinstance(fields, dict) and fields.get("root_metadata"):
            self.root_metadata = dict(fields["root_metadata"])

    def _read_tip(self) -> str | None:
        try:
            return self.repo.resolve("HEAD").digest
        except RevisionError:  # the branch has no commit yet
            return None

    def _step_of(self, commit: Commit) -> Step:
        metrics = metrics_of(commit)
        number = commit.metadata["step"]
        return Step(number, commit.time, metrics, commit.digest, self._rate(commit, metrics))

    def _rate(self, commit: Commit, metrics: Any) -> float | None:
        """The score of a stored step; None, with a warning, if `best_fn` cannot tell."""
        if commit.digest not in self._rated:
            try:
                score = rate(commit.step or 0, metrics, self._options)
            except VcjaxError as error:
                logging.warning("%s has no rank: %s", commit, error.message)
                score = None
            self._rated[commit.digest] = score
        return self._rated[commit.digest]

    # -- saving ----------------------------------------------------------------

    @property
    def is_saving(self) -> bool:
        """Whether a commit is under way."""
        return self._saving is not None and not self._saving.future.done()

    def begin(
        self,
        step: Step,
        commit: Callable[[], Commit | Future[Commit]],
        old_steps: Callable[[], Sequence[int]],
        items: Sequence[str] | None,
    ) -> None:
        """Saves a step.

        Args:
            step: what is saved; its commit is not known yet.
            commit: makes the commit, or starts to.
            old_steps: the steps to be dropped, once the new one is among them.
            items: names of its items, if it is to have a folder.
        """
        made = commit()
        future: Future[Commit] = Future()
        if isinstance(made, Commit):
            future.set_result(made)
        else:
            future = made
        with self._lock:
            replaced = self.index.get(step.step)
            self.index.add(step)
            latest = self.index.latest
            numbers = [
                n for n in old_steps() if latest is None or n not in (latest.step, step.step)
            ]
            gone = tuple(filter(None, map(self.index.remove, numbers)))
        self._saving = Saving(step, replaced, gone, future)
        background = not isinstance(made, Commit) or self._options.enable_background_delete
        if not gone and items is None and self._callback is None:
            pass
        elif background:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="vcjax-retention")
            self._retiring = [task for task in self._retiring if not _is_over(task)]
            self._retiring.append(self._worker.submit(self._retire, future, step.step, gone, items))
        if isinstance(made, Commit):
            self.settle()
            if not background:
                self._retire(future, step.step, gone, items)

    def settle(self) -> None:
        """Waits for the commit that is under way, and takes note of how it ended.

        Raises:
            TimeoutError: it has not ended within `async_options.timeout_secs`, and may still.
        """
        if self._saving is None:
            return
        saving = self._saving
        try:
            failure = saving.future.exception(self._timeout)
        except FutureTimeout:
            raise TimeoutError(
                f"step {saving.step.step} is not on disk after {self._timeout} seconds"
            ) from None
        self._saving = None
        try:
            self.repo.wait_until_finished()  # raises what `failure` is, and then no more
        except Exception as error:
            if error is not failure:
                logging.error("a commit besides step %d failed too: %s", saving.step.step, error)
        number = saving.step.step
        if failure is not None:
            self._failure = number, failure
            with self._lock:
                self.index.remove(number)
                for step in filter(None, (saving.replaced, *saving.gone)):
                    self.index.add(step)
            return
        commit = saving.future.result()
        overtaken = commit.parents != (() if self._tip is None else (self._tip,))
        self._tip, before = commit.digest, self._tip
        self._rated[commit.digest] = saving.step.score
        with self._lock:
            self.index.add(replace(saving.step, commit=commit.digest, time=commit.time))
            self.dropped.pop(number, None)
        if overtaken:  # somebody was faster, and this step follows theirs
            self._tip = before
            self.follow()

    def raise_failure(self, instead_of: int | None = None) -> None:
        """Raises what went wrong with a save, once.

        Args:
            instead_of: the step that is not saved because of it.
        """
        if self._failure is None:
            return
        (step, failure), self._failure = self._failure, None
        text = f"step {step}, saved in the background, failed"
        also = "" if instead_of is None else f"; step {instead_of} was not saved"
        if isinstance(failure, VcjaxError):
            named = copy.copy(failure)
            named.message = f"{text}: {failure.message}{also}"
            raise named from failure
        failure.add_note(text + also)
        raise failure

    @property
    def has_failed(self) -> bool:
        """Whether a save that is over has failed; takes no time."""
        future = None if self._saving is None else self._saving.future
        return self._failure is not None or (
            future is not None and future.done() and future.exception() is not None
        )

    # -- letting go ------------------------------------------------------------

    def _retire(
        self,
        future: Future[Commit],
        number: int,
        gone: Sequence[Step],
        items: Sequence[str] | None,
    ) -> None:
        """Marks a step that was saved, and lets the data of those go that it replaces."""
        if future.exception() is not None:
            return
        if self._callback is not None:
            self._callback()
        if items is not None:
            self._folders.make(number, items)
        if gone:
            self.prune(gone, self._policy)

    def prune(self, steps: Sequence[Step], policy: str) -> list[Step]:
        """Lets the data of steps go; gives back those that a ref spares, which stay steps."""
        report = self.repo.prune([step.commit for step in steps], policy)
        spared = [step for step in steps if step.commit not in report.commits]
        with self._lock:
            for step in steps:
                if step in spared:
                    self.index.add(step)
                else:
                    self.index.remove(step.step)
                    self.dropped[step.step] = step.commit
                    self._folders.remove(step.step)
        return spared

    def finish(self) -> None:
        """Waits for everything that is under way.

        Raises:
            Exception: what went wrong, once.
        """
        self.settle()
        try:
            self.raise_failure()
        finally:
            self._retired()

    def _retired(self) -> None:
        tasks, self._retiring = self._retiring, []
        errors = [error for task in tasks if (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    def take_back(self, step: Step) -> None:
        """Moves the branch from the commit of a step to the one before it.

        Raises:
            VcjaxError: something else points to that commit.
        """
        branch = self.repo.head.branch
        name = HEAD if branch is None else HEADS + branch
        states = {**self.repo.refs.under("refs/"), **self.repo.refs.under("aliases/")}
        others = [ref.name for ref in states.values() if ref.commit == step.commit]
        if branch is None or [other for other in others if other != name]:
            raise VcjaxError(
                f"step {step.step} is not deleted: a branch, a tag or HEAD points to its commit "
                f"{step.commit[:8]}",
                hint="`vcjax log` shows which; move or delete it, or commit to the branch, first",
            )
        parents = self.repo.history.commit(step.commit).parents
        if parents:
            self.repo.branch(branch, at=self.repo.history.commit(parents[0]), force=True)
        else:
            self.repo.refs.remove(name)
        self.repo.refresh()
        self._tip = self._read_tip()

    def is_tip(self, step: Step) -> bool:
        """Whether the branch points to the commit of a step."""
        return step.commit == self._tip

    def close(self) -> None:
        """Ends the thread; everything was waited for."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None


def _is_over(task: Future[None]) -> bool:
    return task.done() and task.exception() is None
