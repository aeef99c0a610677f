"""The steps of a branch as a manager keeps them: in step with commits, saves and pruning."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import NotRequired, TypedDict, TypeVar

import orbax.checkpoint as ocp
from absl import logging

from vcjax.errors import VcjaxError
from vcjax.history import Commit
from vcjax.orbax.manager.known_steps import KnownSteps, News
from vcjax.orbax.manager.step import PlanMessage, Saving, Step
from vcjax.orbax.manager.step_folders import StepFolders
from vcjax.repo import Repository

TIMEOUT_SECONDS = 1200
"""How long a save in the background may take; the default of Orbax's AsyncOptions."""


_Brought = TypeVar("_Brought")


class Told(TypedDict):
    """What process 0 tells when all are together.

    `plan` is of a save, whose commit all begin then; `exists` is the step that was to be saved
    and the commit that it has already.
    """

    news: News
    plan: NotRequired[PlanMessage]
    exists: NotRequired[tuple[int, str]]


class StepKeeper(KnownSteps):
    """Knows the steps on the current branch, and lets the data of dropped ones go.

    Args:
        repo: the repository.
        options: the manager's.
        policy: the retention policy in words.
    """

    def __init__(self, repo: Repository, options: ocp.CheckpointManagerOptions, policy: str = ""):
        super().__init__(repo, options)
        self._policy = policy
        self._timeout = getattr(options.async_options, "timeout_secs", TIMEOUT_SECONDS)
        self._callback = getattr(options.async_options, "post_finalization_callback", None)
        self._folders = StepFolders(repo.store.location.folder, options)
        self._saving: Saving | None = None
        self._failure: tuple[Saving, BaseException] | None = None
        self._settling = threading.RLock()  # any thread may wait
        self._worker: ThreadPoolExecutor | None = None
        self._retiring: list[Future[None]] = []

    def _ready(self) -> None:
        self.settle()
        self.raise_retired()

    # -- together --------------------------------------------------------------

    def agree(
        self, find: Callable[[list[_Brought]], Told | None], bring: Callable[[], _Brought]
    ) -> Told | None:
        """What process 0 finds, on all processes, which have taken its news then.

        Args:
            find: on process 0; if it gives anything, then with the news that it has taken.
            bring: on all processes.

        Raises:
            Exception: that of the step saved before, on whichever process it failed.
        """
        if not self.repo.processes.is_shared:
            return find([bring()])
        was_stale, self.is_stale = self.is_stale, True  # until all have taken the news
        try:
            told = self.repo.processes.agree(find, bring)
        except VcjaxError:
            if not self.leads:  # this process may know better what went wrong
                self.settle()
                self.raise_failure()
            raise
        if told is not None and not self.leads:
            try:
                self.settle()
                self.raise_failure()
                self.take(told["news"])
            except BaseException as error:
                if "plan" in told:  # the others wait for the commit
                    self.repo.processes.decline(error)
                raise
        self.is_stale = was_stale and (told is None or "survey" not in told["news"])
        return told

    def follow(self, bring: Callable[[], None]) -> None:
        """Takes note of what others have committed, all processes together.

        Args:
            bring: done on all processes before.
        """
        was_stale = self.is_stale

        def ready() -> bool:
            bring()
            return was_stale

        self.agree(lambda stale: Told(news=self.take_news(any(stale))), ready)

    def take_news(self, is_stale: bool) -> News:
        """On process 0: takes note of what others have committed, and gives what to tell.

        Args:
            is_stale: whether some process may know other steps than this one.
        """
        if self.repo.processes.is_shared:
            self.raise_retired(only_done=True)
        news = self.news(is_stale)
        self.take(news)
        return news

    # -- saving ----------------------------------------------------------------

    @property
    def is_saving(self) -> bool:
        """Whether a commit is under way."""
        return self._saving is not None and not self._saving.future.done()

    def begin(
        self,
        step: Step,
        commit: Callable[[], Commit | Future[Commit]],
        numbers: Sequence[int],
        items: Sequence[str] | None,
    ) -> None:
        """Saves a step.

        Args:
            step: what is saved; its commit is not known yet.
            commit: makes the commit, or starts to.
            numbers: the steps that lose their data once it is saved.
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
            gone = tuple(filter(None, map(self.index.remove, numbers)))
        self._saving = Saving(step, replaced, gone, future, threading.get_ident())
        background = not isinstance(made, Commit) or self._options.enable_background_delete
        idle = not self.leads or (self._callback is None and not gone and items is None)
        if background and not idle:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="vcjax-retention")
            self._retiring = [task for task in self._retiring if not _is_over(task)]
            self._retiring.append(self._worker.submit(self._retire, future, step.step, gone, items))
        if isinstance(made, Commit):
            self.settle()
            if not background and not idle:
                self._retire(future, step.step, gone, items)

    def old_steps(self, step: Step, find: Callable[[], Sequence[int]]) -> list[int]:
        """The steps that a policy drops once a step is saved; never it or the latest."""

        def numbers() -> list[int]:
            found, latest = find(), self.index.latest
            return [n for n in found if latest is None or n not in (latest.step, step.step)]

        found = self.after_adding(step, numbers)
        if not self.repo.processes.is_shared or not found:
            return found
        # Elsewhere they are listed again once they were found to be spared.
        spared = set(self._pointers(besides=self._branch).values())
        steps = {n: self.index.get(n) for n in found}
        return [n for n, step in steps.items() if step is None or step.commit not in spared]

    def settle(self) -> None:
        """Waits for the commit that is under way, and takes note of how it ended.

        Raises:
            TimeoutError: it has not ended within `async_options.timeout_secs`, and may still.
        """
        with self._settling:
            if self._saving is not None:
                self._settle(self._saving)

    def _settle(self, saving: Saving) -> None:
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
            self._failure = saving, failure
            self.is_stale = True
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
            if self.repo.processes.is_shared:  # else it is known once they are pruned
                self.dropped.update((step.step, step.commit) for step in saving.gone)
        if overtaken:  # somebody was faster, and this step follows theirs
            self._catch_up(before, commit.digest)

    def _catch_up(self, before: str | None, tip: str) -> None:
        """Adds the steps between the known tip and that of this manager's own commit."""
        after, self._tip = self._tip, before
        if self._follow(tip):
            return
        self._tip = after
        self.is_stale = True  # to be told of by process 0, next time that all are together
        if not self.repo.processes.is_shared:
            self.reload()

    def raise_failure(self, instead_of: int | None = None) -> None:
        """Raises what went wrong with a save, once; in threads that merely wait, every time.

        Args:
            instead_of: the step that is not saved because of it.
        """
        if self._failure is None:
            return
        saving, failure = self._failure
        saves = (saving.thread, threading.main_thread().ident)
        if instead_of is not None or threading.get_ident() in saves:
            self._failure = None
        text = f"step {saving.step.step}, saved in the background, failed"
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
        """Lets the data of steps go; gives back those that a ref spares, which stay steps.

        Of several processes only process 0 does, and what was spared is told to all when
        they are together next.
        """
        report = self.repo.prune([step.commit for step in steps], policy)
        spared = [step for step in steps if step.commit not in report.commits]
        with self._lock:
            if self.repo.processes.is_shared:
                self._spared += spared
            else:
                self.forget(steps, spared)
        for step in steps:
            if step not in spared:
                self._folders.remove(step.step)
        return spared

    def forget(self, steps: Sequence[Step], spared: Sequence[Step]) -> None:
        """Takes note of which steps have let their data go."""
        with self._lock:
            for step in steps:
                if step in spared:
                    self.index.add(step)
                else:
                    self.index.remove(step.step)
                    self.dropped[step.step] = step.commit

    def delete(self, step: Step) -> bool:
        """Lets the data of a step go, all processes together; False if a ref spares it.

        Raises:
            VcjaxError: it is the latest on its branch, and something else points to it.
        """

        def find() -> tuple[str | None, bool]:
            if step.commit == self._tip:
                self._take_back(step)
            spared = bool(self.prune([step], "delete()"))
            with self._lock:
                self._spared = [one for one in self._spared if one is not step]
            return self._read_tip(), spared

        was_stale, self.is_stale = self.is_stale, True  # in case that half of it fails
        tip, spared = self.repo.processes.agree(find)
        self.is_stale = was_stale
        if tip != self._tip:
            self.repo.refresh()
            self._tip = tip
        if not spared:
            self.forget([step], [])
        return not spared

    def finish(self) -> None:
        """Waits for everything that is under way.

        Raises:
            Exception: what went wrong, once.
        """
        self.settle()
        try:
            self.raise_failure()
        finally:
            # Of several processes, errors are raised when all are together next.
            if self.repo.processes.is_shared:
                wait(self._retiring)
            else:
                self.raise_retired()

    def raise_retired(self, only_done: bool = False) -> None:
        """Raises what went wrong with letting data go, once.

        Args:
            only_done: wait for nothing.
        """
        tasks = [task for task in self._retiring if task.done() or not only_done]
        self._retiring = [task for task in self._retiring if task not in tasks]
        errors = [error for task in tasks if (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    def _take_back(self, step: Step) -> None:
        """Moves the branch from the commit of a step to the one before it.

        Raises:
            VcjaxError: something else points to that commit.
        """
        branch, name = self.repo.head.branch, self._branch
        if branch is None or step.commit in self._pointers(besides=name).values():
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

    def close(self) -> None:
        """Ends the thread; everything was waited for. Raises what was not raised yet."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None
        self.raise_retired()


def _is_over(task: Future[None]) -> bool:
    return task.done() and task.exception() is None
