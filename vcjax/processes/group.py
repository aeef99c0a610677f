"""Agreeing: what the processes that use a repository together must decide alike."""

from collections.abc import Callable
from typing import Any

from vcjax.repo.reader import Reader
from vcjax.repo.settings import Settings
from vcjax.storage import Store


class Participant(Reader):
    """The part of `Repository` that speaks to the other processes of the same program.

    Attributes:
        local: whether this process uses the repository alone, though JAX runs several.
        process_timeout_s: how long another process of the same program may give no
            sign of life before it is taken for dead, seconds. One that is alive may
            come to a commit later than the others by five times that.
    """

    process_timeout_s: float = 60.0

    def __init__(self, store: Store, settings: Settings, local: bool = False):
        super().__init__(store, settings)
        self.local = local

    @property
    def is_shared(self) -> bool:
        """Whether this is one of several processes that commit to the repository together."""
        if self.local:
            return False
        from vcjax.processes.conversation import several

        return several(self.url)

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
                for `process_timeout_s`.
        """
        if not self.is_shared:
            return find() if bring is None else find([bring()])
        from vcjax.processes.conversation import agree

        if bring is None:
            return agree(self.url, self.process_timeout_s, lambda _: find(), lambda: None)
        return agree(self.url, self.process_timeout_s, find, bring)

    def decline(self, error: BaseException) -> None:
        """Tells the other processes that this one cannot take part in what they do next.

        To be called in the place of `commit`, `commit_async` or `agree` when something
        has failed on the way there: the others then raise a `ProcessError` in theirs,
        at once. Does nothing if there are no others.
        """
        if self.is_shared:
            from vcjax.processes.conversation import Conversation

            Conversation(self.url, self.process_timeout_s).fail(error)
