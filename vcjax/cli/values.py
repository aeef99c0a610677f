"""Values of flags that are more than a word: NAME=NUMBER, KEY=JSON, GLOB=SIDE."""

import json
from collections.abc import Sequence
from typing import Any

from vcjax.cli.command import UsageError


def pair(flag: str, text: str) -> tuple[str, str]:
    """The two sides of "name=value"; the first `=` divides.

    Raises:
        UsageError: there is no `=`, or nothing before it.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(
            f"--{flag}={text}: a name, `=` and a value are expected",
            hint=f"write --{flag}=NAME=VALUE",
        )
    return name, value


def metrics(texts: Sequence[str]) -> dict[str, float]:
    """The metrics in `--metric` flags.

    Raises:
        UsageError: one is no number.
    """
    numbers = {}
    for text in texts:
        name, value = pair("metric", text)
        try:
            numbers[name] = float(value)
        except ValueError as error:
            raise UsageError(
                f"--metric={text}: {value!r} is no number",
                hint="metrics are numbers; other remarks belong in --metadata",
            ) from error
    return numbers


def json_pairs(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """{key: value} of "key=value" flags. A value that is not JSON is taken as text."""
    return {name: json_or_text(value) for name, value in (pair(flag, text) for text in texts)}


def json_or_text(text: str) -> Any:
    """What a text means as JSON; the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text
