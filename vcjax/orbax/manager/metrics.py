"""Metrics: what Orbax lets them be, and the numbers among them."""

from collections.abc import Mapping
from typing import Any

from vcjax.history import checked_metadata


def checked(metrics: Any) -> tuple[Any, dict[str, float]]:
    """(metrics as JSON types, the numbers in them by name).

    Numbers in nested dicts are named by their path, "eval/loss"; these are what `best:NAME`
    and `vcjax log` know. Scalars of NumPy and JAX are numbers.

    Raises:
        VcjaxError: something that JSON cannot hold.
    """
    if metrics is None:
        return None, {}
    plain = checked_metadata(metrics, "metrics")
    return plain, dict(sorted(_numbers(plain, "").items()))


def _numbers(value: Any, name: str) -> dict[str, float]:
    if isinstance(value, int | float) and name:
        return {name: float(value)}
    found: dict[str, float] = {}
    if isinstance(value, Mapping):
        for key, child in value.items():
            found.update(_numbers(child, f"{name}/{key}" if name else key))
    return found


def nested(plain: Any, numbers: Mapping[str, float]) -> Any:
    """The metrics as they were given, if they are more than their numbers by name; else None."""
    return None if plain is None or _is_flat(plain, numbers) else plain


def _is_flat(plain: Any, numbers: Mapping[str, float]) -> bool:
    """Whether the numbers say it all; a NaN is as good as any other."""
    return isinstance(plain, Mapping) and all(
        name in numbers and (value == numbers[name] or value != value)
        for name, value in plain.items()
    )
