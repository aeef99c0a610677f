"""Options of the checkpoint manager, and which steps they keep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vcjax.errors import VcjaxError


@dataclass(frozen=True)
class CheckpointManagerOptions:
    """What a `CheckpointManager` saves and keeps. Names and defaults are Orbax's.

    Attributes:
        max_to_keep: how many steps keep their data; all by default.
        save_interval_steps: save only steps divisible by this (and the first).
        best_fn: metrics -> number by which `best_step` and `max_to_keep` rank steps.
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
    """

    step: int
    commit: str
    metrics: Mapping[str, float]


def ranked(steps: Sequence[Step], options: CheckpointManagerOptions) -> list[Step]:
    """The steps that have a rank, best first; of equal ones the later first."""
    if options.best_fn is None:
        return []
    scored = [(options.best_fn(step.metrics), step) for step in steps if step.metrics]
    sign = -1 if options.best_mode == "max" else 1
    return [s for _, s in sorted(scored, key=lambda pair: (sign * pair[0], -pair[1].step))]


def dropped(steps: Sequence[Step], options: CheckpointManagerOptions) -> list[Step]:
    """The steps that lose their data: all but the best, or latest, `max_to_keep`.

    The latest step is always kept, so that training can go on from it even when
    it is not among the best.
    """
    if options.max_to_keep is None or len(steps) <= options.max_to_keep:
        return []
    in_order = sorted(steps, key=lambda step: step.step)
    best = ranked(steps, options)
    if best:
        unranked = [step for step in in_order if not step.metrics]
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
