"""Numbers, sizes and times as people read them."""

import math
from datetime import UTC, datetime

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def format_bytes(count: float) -> str:
    """A size in bytes with three digits and a decimal unit.

    Example:
        >>> format_bytes(0), format_bytes(999), format_bytes(1_234_567)
        ('0 B', '999 B', '1.23 MB')
    """
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    if unit == 0:
        return f"{int(size)} B"
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {_UNITS[unit]}"


UNKNOWN = "–"
"""What stands for a figure that is None: the leaf was not read as a whole."""


def format_number(value: float | None) -> str:
    """A number with at most five digits.

    Example:
        >>> format_number(0.971234), format_number(1200.0), format_number(1e-7)
        ('0.97123', '1200', '1e-07')
    """
    return UNKNOWN if value is None else f"{value:.5g}"


def format_percent(fraction: float | None) -> str:
    """A fraction as a percentage; tiny ones do not become zero, and x / 0 is "from 0"."""
    if fraction is None:
        return UNKNOWN
    if fraction == math.inf:
        return "from 0"
    if not math.isfinite(fraction):
        return str(fraction)
    percent = 100 * fraction
    return f"{percent:.2f} %" if percent == 0 or percent >= 0.01 else f"{percent:.1e} %"


def format_time(moment: datetime | float) -> str:
    """A moment (a `datetime` or seconds since 1970 UTC) in local time, to the second."""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
