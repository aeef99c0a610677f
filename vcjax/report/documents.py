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
    return {"format": f"vcjax.{kind}.{VERSION}", **{k: _standard(v) for k, v in fields.items()}}


def dumps(content: Any) -> str:
    """Standard JSON, indented, in ASCII."""
    return json.dumps(content, indent=2, allow_nan=False)


def _standard(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _standard(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(child) for child in value]
    return value
