"""What vcjax knows of TensorStore and TensorStore does not document.

Everything else in vcjax asks here (docs/architecture.md has the table). Loads nothing.
"""

TEMPORARY = ".__lock"
"""How the names end under which TensorStore writes a file before renaming it."""

_FULL = ("No space left", "quota", "RESOURCE_EXHAUSTED")
_REFUSED = ("Permission denied", "Read-only", "PERMISSION_DENIED")
_UNREACHABLE = ("UNAVAILABLE", "retry attempts failed")
_HELD = ("Failed to acquire lock",)
_MISSING = ("NOT_FOUND", "missing")


def is_full(error: BaseException) -> bool:
    """Whether the disk, the quota or the bucket has no room for what was written.

    TensorStore raises ValueError for nearly everything; only its text, which ends with
    the operating system's or the service's own, says what happened. So here and below.
    """
    return _says(error, _FULL)


def is_refused(error: BaseException) -> bool:
    """Whether the place may not be read or written."""
    return _says(error, _REFUSED)


def is_unreachable(error: BaseException) -> bool:
    """Whether the service that keeps the place does not answer."""
    return _says(error, _UNREACHABLE)


def is_held(error: BaseException) -> bool:
    """Whether another writer has the lock of a file."""
    return _says(error, _HELD)


def is_missing(error: BaseException) -> bool:
    """Whether an array, or a chunk of it, is not there."""
    return _says(error, _MISSING)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error)
    return any(word in text for word in words)
