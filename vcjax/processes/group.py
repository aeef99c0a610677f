"""The processes that use one repository together, and what they must decide alike."""

import sys
from collections.abc import Callable
from typing import Any

TIMEOUT_SECONDS = 60.0


def several(url: str) -> bool:
    """Whether this is one of several processes, which share the repository at a URL.

    Does not load JAX, and does not start its devices before `jax.distributed` is.
    """
    jax = sys.modules.get("jax")
    if jax is None or url.startswith("memory://") or not jax.distributed.is_initialized():
        return False
    return jax.process_count() > 1


class Group:
    """The processes of one program (`jax.distributed`) at one repository; `repo.processes`.

    Attributes:
        local: whether this process uses the repository alone, though JAX runs several.
        timeout: how long another process may give no sign of life before it is taken
            for dead, seconds. One that is alive may come to a commit later than the
            others by five times that.
    """

    def __init__(self, url: str, local: bool = False):
        self._url = url
        self.local = local
        self.timeout = TIMEOUT_SECONDS

    def __repr__(self) -> str:
        return f"<Group of {self._url!r}, local={self.local}, timeout={self.timeout} s>"

    @property
    def is_shared(self) -> bool:
        """Whether this is one of several processes that commit to the repository together."""
        return not self.local and several(self._url)

    def agree(
        self,
        find: Callable[..., Any],
        bring: Callable[[], Any] | None = None,
    ) -> Any:
        """What `find` gives on process 0, on all processes; they call this together.

        For decisions that must not differ, such as whether to save now. With one
        process, or a repository of its own for each, this merely calls both.

        Args:
            find: called on process 0, without arguments, or with the list of what each
                process brings. What both give must be made of MessagePack types.
            bring: called on every process before that. If it fails on one process, all fail.

        Raises:
            VcjaxError: whatever `find` raised.
            ProcessError: `bring` failed on another process, or one was not heard of
                for `timeout`.
        """
        if not self.is_shared:
            return find() if bring is None else find([bring()])
        from vcjax.processes.conversation import agree

        if bring is None:
            return agree(self._url, self.timeout, lambda _: find(), _nothing)
        return agree(self._url, self.timeout, find, bring)

    def decline(self, error: BaseException) -> None:
        """Tells the other processes that this one cannot take part in what they do next.

        To be called in the place of `commit`, `commit_async` or `agree` when something
        has failed on the way there: the others then raise a `ProcessError` in theirs,
        at once. Does nothing if there are no others.
        """
        if self.is_shared:
            from vcjax.processes.conversation import Conversation

            Conversation(self._url, self.timeout).fail(error)


def _nothing() -> None:
    """What processes bring that are not asked for anything."""
