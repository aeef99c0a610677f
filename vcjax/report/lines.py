"""Lines of text in pieces, each with the name of a style."""

import re
from typing import NamedTuple

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Span(NamedTuple):
    """A piece of a line.

    Attributes:
        text: what it says.
        style: a style of rich ("bold", "green"…); empty for none. Only terminals show it.
    """

    text: str
    style: str = ""


Line = tuple[Span, ...]


def line(*parts: str | Span) -> Line:
    """A line made of strings and spans.

    Control characters are shown escaped: a leaf path or message from somebody
    else's repository must not move the cursor or recolour the terminal.
    """
    return tuple(
        Span(escaped(part)) if isinstance(part, str) else Span(escaped(part.text), part.style)
        for part in parts
    )


def escaped(text: str) -> str:
    """The text with control characters, and what reverses text, written as escapes."""
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def plain(content: Line) -> str:
    """The text of a line."""
    return "".join(span.text for span in content).rstrip()
