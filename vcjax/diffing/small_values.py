"""Values short enough to be shown: plain ones, and arrays of a few elements. Needs no JAX."""

import math
from typing import Any

import numpy as np

SMALL_ELEMENTS = 8
"""Elements of the largest array that is shown itself."""

TEXT_WIDTH = 60
"""Characters of a value in a line of text; of longer ones the part that differs is shown."""

LEAD = 15
"""Characters of a long text that are shown before the first that differs."""


def is_small(spec: Any) -> bool:
    """Whether a leaf is shown itself: a plain value, or an array of at most `SMALL_ELEMENTS`.

    Keys are not: their words tell nobody anything.

    Args:
        spec: its `LeafSpec`.
    """
    if spec.is_value:
        return True
    return math.prod(spec.shape) <= SMALL_ELEMENTS and not spec.dtype.startswith("key<")


def value_text(value: Any) -> str:
    """A value as people write it: text without quotes, arrays in brackets.

    Example:
        >>> value_text("adam"), value_text(0.125), value_text(np.float32([0.1, 2]))
        ('adam', '0.125', '[0.1, 2.0]')
    """
    if isinstance(value, np.ndarray):
        return _array_text(value)
    if isinstance(value, str) and value.isprintable() and value == value.strip() != "":
        return value
    return repr(value)


def _array_text(array: np.ndarray) -> str:
    if array.ndim == 0:
        return str(array[()])
    return f"[{', '.join(_array_text(np.asarray(part)) for part in array)}]"


def transition_texts(old: Any, new: Any) -> tuple[str, str]:
    """Two values as texts of at most `TEXT_WIDTH` characters, in which a difference is seen."""
    texts = value_text(old), value_text(new)
    if texts[0] == texts[1]:  # NaN of another payload, 0.0 and -0.0 of other widths
        return texts
    pairs = enumerate(zip(*texts, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(map(len, texts)))
    start = max(0, first - LEAD) if max(map(len, texts)) > TEXT_WIDTH else 0
    return _excerpt(texts[0], start), _excerpt(texts[1], start)


def excerpt(value: Any) -> str:
    """The beginning of a value's text."""
    return _excerpt(value_text(value), 0)


def _excerpt(text: str, start: int) -> str:
    end = start + TEXT_WIDTH
    return ("…" if start else "") + text[start:end] + ("…" if text[end:] else "")


def value_document(value: Any) -> Any:
    """A value as JSON types: complex numbers as pairs, bytes in hexadecimal digits."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biufc":
            return value_document(value.tolist())
        return value_document(value.astype(np.float64).tolist())  # bfloat16 and the like
    if isinstance(value, list):
        return [value_document(part) for part in value]
    if isinstance(value, complex):
        return [value.real, value.imag]
    return value.hex() if isinstance(value, bytes) else value
