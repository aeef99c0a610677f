"""Committing in the background: a thread, and what waits for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from absl import logging

from vcjax.history import Commit

T = TypeVar("T")


class Background:
    """A thread that commits: at most one commit per branch waiting or at work.

    Args:
        limit: bound of the bytes that copies of the callers' arrays may take.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._held = 0
        self._room = threading.Condition()
        # Threads of an executor are joined when the interpreter exits: exit waits.
        self._executor: ThreadPoolExecutor | None = None
        self._pending: dict[str | None, Future[Commit]] = {}

    def submit(
        self,
        name: str | None,
        need: int,
        take: Callable[[bool], T],
        action: Callable[[T], Commit],
    ) -> Future[Commit]:
        """Starts a commit to a branch (None: detached `HEAD`) after the one before it.

        Returns when the arrays may be donated and written to. A tree whose copies
        would take more than the limit is committed before this returns.

        Args:
            need: how many bytes the copies take.
            take: what is to be committed; with True, safe from what the caller does next.
            action: commits it.
        """
        if need > self._limit:
            done: Future[Commit] = Future()
            done.set_result(action(take(False)))
            return done
        with self._room:
            self._room.wait_for(lambda: self._held + need <= self._limit)
            self._held += need
        try:
            safe = take(True)
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="vcjax-commit")
            future = self._executor.submit(self._run, action, [safe], need)
        except BaseException:
            self._release(need)
            raise
        future.add_done_callback(_log_failure)
        self._pending[name] = future
        return future

    def _run(self, action: Callable[[T], Commit], taken: list[T], need: int) -> Commit:
        try:
            return action(taken.pop())  # popped, so that the copies are freed with the commit
        finally:
            self._release(need)

    def _release(self, need: int) -> None:
        with self._room:
            self._held -= need
            self._room.notify_all()

    def wait(self, name: str | None) -> None:
        """Waits for the commit to a branch that is under way; raises its error, once."""
        future = self._pending.get(name)
        if future is None:
            return
        try:
            future.result()
        finally:
            self._pending.pop(name, None)

    def wait_all(self) -> None:
        """Waits for all commits under way; raises the first error, once.

        Threads that wait at the same time all wait until the end, and all raise it.
        """
        pending = dict(self._pending)
        errors = [error for future in pending.values() if (error := future.exception())]
        for name, future in pending.items():
            if self._pending.get(name) is future:
                self._pending.pop(name, None)
        if errors:
            raise errors[0]

    @property
    def busy(self) -> bool:
        """Whether a commit is under way."""
        return any(not future.done() for future in self._pending.values())


def _log_failure(future: "Future[Commit]") -> None:
    """Errors are raised at the next call; a process that ends before must not hide them."""
    error = future.exception()
    if error is not None:
        logging.error("a background commit failed: %s", error)
