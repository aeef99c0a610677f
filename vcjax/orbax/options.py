"""Options of the checkpoint manager, and which steps they keep."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vcjax.errors import VcjaxError


@dataclass(frozen=True)
class CheckpointManagerOptions:
    """What a `CheckpointManager` saves and keeps. Names and defaults are Orbax's.

    Attributes:
        max_to_keep: how many steps keep their data; all by default.
        save_interval_steps: save only steps divisible by this (and the first).
        best_fn: metrics -> number by which `best_step` and `max_to_keep` rank steps;
            NaN ranks below every number. A step without metrics has no rank.
        best_mode: whether a large ("max") or a small ("min") number is good.
        create: make the repository if there is none.
        enable_async_checkpointing: whether `save` returns before the step is on disk.
    """

    max_to_keep: int | None = None
    save_interval_steps: int = 1
    best_fn: Callable[[Mapping[str, float]], float] | None = None
    best_mode: Literal["max", "min"] = "max"
    create: bool = True
    enable_async_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.best_mode not in ("max", "min"):
            raise VcjaxError(f"best_mode is {self.best_mode!r}", hint="use 'max' or 'min'")
        if self.save_interval_steps < 1:
            raise VcjaxError("save_interval_steps must be 1 or more")
        if self.max_to_keep is not None and self.max_to_keep < 1:
            raise VcjaxError("max_to_keep must be 1 or more, or None to keep every step")


@dataclass(frozen=True)
class Step:
    """One saved step.

    Attributes:
        step: its number.
        commit: digest of its commit.
        metrics: {name: value}.
        score: what `best_fn` makes of them; None if the step has no rank.
    """

    step: int
    commit: str
    metrics: Mapping[str, float]
    score: float | None = None


def checked_step(step: Any) -> int:
    """The number of a step; any integer type will do.

    Raises:
        VcjaxError: it is no integer, or negative.
    """
    hint = "steps are integers from 0: int, or a NumPy or JAX integer scalar"
    if isinstance(step, bool):
        raise VcjaxError(f"{step} is not a step", hint=hint)
    try:
        number = operator.index(step)
    except TypeError as error:
        raise VcjaxError(f"{step!r} is not a step", hint=hint) from error
    if number < 0:
        raise VcjaxError(f"step {number} is negative", hint=hint)
    return number


def rate(
    step: int, metrics: Mapping[str, float], options: CheckpointManagerOptions
) -> float | None:
    """What `best_fn` makes of the metrics of a step; None without either.

    Raises:
        VcjaxError: `best_fn` fails, or returns no number.
    """
    if options.best_fn is None or not metrics:
        return None
    try:
        return float(options.best_fn(dict(metrics)))
    except Exception as error:
        raise VcjaxError(
            f"best_fn cannot rate step {step} by its metrics {dict(metrics)}: {error!r}",
            hint="save it with the metrics that best_fn reads, or without any: it has no rank then",
        ) from error


def ranked(steps: Sequence[Step], options: CheckpointManagerOptions) -> list[Step]:
    """The steps that have a rank, best first; of equal ones the later first."""
    sign = -1 if options.best_mode == "max" else 1

    def order(step: Step) -> tuple[bool, float, int]:
        score = step.score or 0.0
        diverged = math.isnan(score)
        return diverged, 0.0 if diverged else sign * score, -step.step

    return sorted((step for step in steps if step.score is not None), key=order)


def dropped(steps: Sequence[Step], options: CheckpointManagerOptions) -> list[Step]:
    """The steps that lose their data: all but the best, or latest, `max_to_keep`.

    The latest step is always kept, so that training can go on from it even when
    it is not among the best; so are those without a rank, where others have one.
    """
    if options.max_to_keep is None or len(steps) <= options.max_to_keep:
        return []
    in_order = sorted(steps, key=lambda step: step.step)
    best = ranked(steps, options)
    if best:
        unranked = [step for step in in_order if step.score is None]
        keep = best[: options.max_to_keep] + unranked
    else:
        keep = in_order[-options.max_to_keep :]
    kept = {step.commit for step in keep} | {in_order[-1].commit}
    return [step for step in in_order if step.commit not in kept]


def describe(options: CheckpointManagerOptions) -> str:
    """The retention policy in words, as it is quoted when a pruned step is restored."""
    if options.best_fn is None:
        return f"max_to_keep={options.max_to_keep}"
    return f"max_to_keep={options.max_to_keep} by best_fn ({options.best_mode})"
