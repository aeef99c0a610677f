"""What may stand in the metadata and metrics of a commit."""

import math
from collections.abc import Mapping
from typing import Any

from vcjax.errors import VcjaxError
from vcjax.history.canonical import MAX_METADATA_DEPTH


def _plain(value: Any) -> Any:
    """A NumPy or JAX scalar as the Python number it holds; anything else unchanged."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def checked_metadata(value: Any, where: str = "metadata", depth: int = 0) -> Any:
    """A copy of `value` that consists of JSON's types alone, its keys sorted.

    Tuples become lists, NumPy and JAX scalars numbers.

    Args:
        value: the metadata.
        where: what an error calls it.
        depth: how many levels above `value` there are.

    Raises:
        VcjaxError: something that JSON cannot hold; the message says where.
    """
    if depth > MAX_METADATA_DEPTH:
        raise VcjaxError(
            f"{where} is nested more than {MAX_METADATA_DEPTH} levels deep",
            hint="put what is this large into the tree, or into a file of its own",
        )
    value = _plain(value)
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise VcjaxError(f"{where} is an integer of more than 64 bits", hint="store it as text")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise VcjaxError(
                    f"{where} has the key {key!r}, which is not a string",
                    hint="metadata holds what JSON holds: string keys only",
                )
        return {
            key: checked_metadata(value[key], f"{where}[{key!r}]", depth + 1)
            for key in sorted(value)
        }
    if isinstance(value, list | tuple):
        return [
            checked_metadata(child, f"{where}[{i}]", depth + 1) for i, child in enumerate(value)
        ]
    raise VcjaxError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold",
        hint="metadata holds None, bool, int, float, str, lists and dicts; put arrays in the tree",
    )


def checked_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as {name: float}.

    Raises:
        VcjaxError: a metric is not a number.
    """
    numbers: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        number = _plain(value)
        if not isinstance(name, str) or not isinstance(number, int | float):
            raise VcjaxError(
                f"metric {name!r} is {value!r}, which is not a number",
                hint="metrics map names to scalars; other remarks belong in metadata=",
                shell_hint="metrics are numbers; other remarks belong in --metadata",
            )
        numbers[name] = float(number)
    return dict(sorted(numbers.items()))


def lower_is_better(metric: str) -> bool:
    """Whether a metric's name says that small values are good.

    True for names one of whose words is loss, error, perplexity and the like
    ("val_loss", "eval/nll"). A mode given explicitly always wins over this.
    """
    words = metric.lower().replace("/", "_").replace("-", "_").replace(".", "_").split("_")
    return bool(_LOWER_IS_BETTER.intersection(words))


_LOWER_IS_BETTER = frozenset(
    [
        "loss",
        "losses",
        "error",
        "err",
        "errors",
        "perplexity",
        "ppl",
        "nll",
        "mse",
        "rmse",
        "mae",
        "wer",
        "cer",
        "fid",
        "kl",
        "bpb",
        "bpc",
    ]
)


def best_value(values: Mapping[str, float], minimise: bool) -> str | None:
    """The key of the best value; NaN is never best; of equal ones the first."""
    numbers = {key: value for key, value in values.items() if not math.isnan(value)}
    if not numbers:
        return None
    return (min if minimise else max)(numbers, key=lambda key: numbers[key])
