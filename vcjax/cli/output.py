"""Where commands write: text or one JSON document to stdout, everything else to stderr."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from vcjax.report.documents import document, dumps
from vcjax.report.lines import Line, Span, escaped, line, plain


class Output:
    """The two streams of a command.

    Text is coloured only on a terminal, and not when NO_COLOR is set. Lines are
    never cut or wrapped.

    Attributes:
        json: whether stdout is for a JSON document alone.
    """

    def __init__(self, json: bool = False):
        self.json = json

    def lines(self, lines: Iterable[Line]) -> None:
        """Writes lines of text to stdout as they come; nothing with `--json`."""
        if not self.json:
            write = self._writer(sys.stdout)
            for content in lines:
                write(content)

    def line(self, *parts: str | Span) -> None:
        """Writes a line of text to stdout; nothing with `--json`."""
        self.lines([line(*parts)])

    def raw(self, text: str) -> None:
        """Writes text that is ours, in lines already, to stdout."""
        write = self._writer(sys.stdout)
        for part in text.splitlines():
            write((Span(part),))

    def document(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Writes the JSON document of a command, if `--json` asks for it."""
        if self.json:
            sys.stdout.write(dumps(document(kind, fields)) + "\n")

    def report(self, kind: str, fields: Mapping[str, Any], lines: Iterable[Line]) -> None:
        """Writes a document with `--json`, lines of text without."""
        self.document(kind, fields)
        if not self.json:
            self.lines(lines)

    def note(self, *parts: str | Span) -> None:
        """Writes a line to stderr."""
        self._writer(sys.stderr)(line(*parts))

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Shows on a terminal, while the block runs, what is being done."""
        if not _colours(sys.stderr):
            yield
            return
        from rich.console import Console  # 0.1 s that pipes and scripts need not wait for
        from rich.text import Text

        with Console(file=sys.stderr).status(Text(escaped(text))):
            yield

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None] | None]:
        """On a terminal, shows how far the block is and when it will end.

        Yields:
            What to call with the bytes done so far, and of all; None if nobody looks.
        """
        if not _colours(sys.stderr):
            yield None
            return
        from rich.console import Console  # as above
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Remaining()
        console = Console(file=sys.stderr)
        with Progress(*columns, console=console, transient=True) as shown:
            task = shown.add_task(escaped(text), total=None)
            yield lambda done, total: shown.update(task, completed=done, total=total)

    def _writer(self, stream: TextIO) -> Callable[[Line], None]:
        """A function that writes a line to a stream, in colours where that is right."""
        if _colours(stream):
            return _coloured(stream)
        encoding = getattr(stream, "encoding", None) or "utf-8"

        def write(content: Line) -> None:
            text = plain(content)
            if not text.isascii():
                text = text.encode(encoding, "backslashreplace").decode(encoding)
            stream.write(text + "\n")

        return write


def _coloured(stream: TextIO) -> Callable[[Line], None]:
    from rich.console import Console  # as above
    from rich.text import Text

    console = Console(file=stream, highlight=False)

    def write(content: Line) -> None:
        text = Text.assemble(*((span.text, span.style) for span in content))
        console.print(text, soft_wrap=True)

    return write


def _colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
