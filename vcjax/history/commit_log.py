"""`CommitLog`: the commits of a walk, one after the other, and a repr that shows the next ones."""

import itertools
from collections import deque
from collections.abc import Iterator

from vcjax.errors import VcjaxError
from vcjax.history.commit import Commit
from vcjax.history.listing import HTML_ROWS, TEXT_ROWS, html_listing, text_listing


class CommitLog(Iterator[Commit]):
    """An iterator over commits.

    Showing it reads the next few commits ahead, and takes none away.

    Args:
        commits: of the walk.
    """

    def __init__(self, commits: Iterator[Commit]):
        self._commits = commits
        self._ahead: deque[Commit] = deque()

    def __next__(self) -> Commit:
        return self._ahead.popleft() if self._ahead else next(self._commits)

    def _next(self, count: int) -> tuple[list[Commit], str]:
        """The next commits, and words for what follows them."""
        try:
            self._ahead.extend(
                itertools.islice(self._commits, max(0, count + 1 - len(self._ahead)))
            )
        except VcjaxError as error:
            return list(self._ahead)[:count], error.message
        return list(self._ahead)[:count], "… and more" if len(self._ahead) > count else ""

    def __repr__(self) -> str:
        commits, more = self._next(TEXT_ROWS)
        return text_listing("<CommitLog>", [_row(commit) for commit in commits], more)

    def _repr_html_(self) -> str:
        commits, more = self._next(HTML_ROWS)
        columns = ("commit", "time", "message")
        return html_listing("Commits", columns, [_row(commit) for commit in commits], more)


def _row(commit: Commit) -> tuple[str, str, str]:
    return commit.digest[:8], f"{commit.time:%Y-%m-%d %H:%M}", commit.summary
