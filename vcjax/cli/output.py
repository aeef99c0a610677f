"""Where commands write: text or one JSON document to stdout, everything else to stderr."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TextIO

from vcjax.report.documents import document, dumps
from vcjax.report.lines import Line, Span, line, plain


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
        for content in lines:
            self.line(*content)

    def line(self, *parts: str | Span) -> None:
        """Writes a line of text to stdout; nothing with `--json`."""
        if not self.json:
            self._write(sys.stdout, line(*parts))

    def raw(self, text: str) -> None:
        """Writes text that is ours, in lines already, to stdout."""
        for part in text.splitlines():
            self._write(sys.stdout, (Span(part),))

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
        self._write(sys.stderr, line(*parts))

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Shows on a terminal, while the block runs, what is being done."""
        if not _colours(sys.stderr):
            yield
            return
        with self._console(sys.stderr).status(text):
            yield

    def _write(self, stream: TextIO, content: Line) -> None:
        if _colours(stream):
            from rich.text import Text  # 0.1 s that pipes and scripts need not wait for

            text = Text.assemble(*((span.text, span.style) for span in content))
            self._console(stream).print(text, soft_wrap=True)
            return
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(plain(content).encode(encoding, "backslashreplace").decode(encoding) + "\n")

    @cached_property
    def _consoles(self) -> dict[int, Any]:
        return {}

    def _console(self, stream: TextIO) -> Any:
        from rich.console import Console  # as above

        if id(stream) not in self._consoles:
            self._consoles[id(stream)] = Console(file=stream, highlight=False)
        return self._consoles[id(stream)]


def _colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
