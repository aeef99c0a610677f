"""The JSON documents of `--json`."""

import json
import math
from collections.abc import Mapping
from typing import Any

VERSION = 1
"""Of every document's schema; a field may be added without a new one."""


def document(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A document that says what it is: {"format": "vcjax.KIND.1", …}.

    Numbers that JSON lacks become the strings "NaN", "Infinity" and "-Infinity".
    """
    assert "format" not in fields, "the document's own field"
    return {"format": f"vcjax.{kind}.{VERSION}", **{k: standard(v) for k, v in fields.items()}}


def dumps(content: Any) -> str:
    """Standard JSON, indented, in ASCII."""
    return json.dumps(content, indent=2, allow_nan=False)


def standard(value: Any) -> Any:
    """The same with strings for the numbers that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: standard(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [standard(child) for child in value]
    return value
