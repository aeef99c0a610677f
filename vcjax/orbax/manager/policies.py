"""When to save and what to keep: Orbax's policies, and those that its older options mean."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import cast

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from vcjax.errors import VcjaxError
from vcjax.orbax.manager.step import Step

_KEEP_OPTIONS = ("max_to_keep", "keep_time_interval", "keep_period")


@dataclass(frozen=True)
class ByFunction:
    """Saves when `should_save_fn(step, latest step or None)` says so."""

    function: Callable[[int, int | None], bool]

    def should_save(
        self,
        step: policies.PolicyCheckpointInfo,
        previous_steps: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.DecisionContext,
    ) -> bool:
        """As Orbax's `SaveDecisionPolicy` has it."""
        return self.function(step.step, previous_steps[-1].step if previous_steps else None)


@dataclass(frozen=True)
class BestSteps:
    """Keeps the `n` best steps by `best_fn`; NaN is worse than every number.

    Attributes:
        n: how many.
        smallest: whether small values are good.
        unranked: whether steps without a rank are kept besides.
    """

    n: int
    smallest: bool
    unranked: bool = True

    def should_preserve(
        self, checkpoints: Sequence[Step], *, context: policies.PreservationContext
    ) -> list[bool]:
        """As Orbax's `PreservationPolicy` has it."""
        if len(checkpoints) <= self.n:
            return [True] * len(checkpoints)
        best = {step.step for step in ranked(checkpoints, self.smallest)[: self.n]}
        return [self.unranked if step.score is None else step.step in best for step in checkpoints]

    def __str__(self) -> str:
        return f"max_to_keep={self.n} by best_fn ({'min' if self.smallest else 'max'})"


def as_policies_see(steps: Sequence[Step]) -> list[policies.PolicyCheckpointInfo]:
    """Steps as Orbax types them: it would have mutable ones, and changes none."""
    return cast("list[policies.PolicyCheckpointInfo]", list(steps))


def ranked(steps: Sequence[Step], smallest: bool) -> list[Step]:
    """The steps that have a rank, best first; of equal ones the later first."""
    sign = 1 if smallest else -1

    def order(step: Step) -> tuple[bool, float, int]:
        score = step.score or 0.0
        diverged = math.isnan(score)
        return diverged, 0.0 if diverged else sign * score, -step.step

    return sorted((step for step in steps if step.score is not None), key=order)


def rate(step: int, metrics: object, options: ocp.CheckpointManagerOptions) -> float | None:
    """What `best_fn` makes of the metrics of a step; None without either.

    Raises:
        VcjaxError: `best_fn` fails, or returns no number.
    """
    if options.best_fn is None or not metrics:
        return None
    try:
        return float(options.best_fn(metrics))
    except Exception as error:
        raise VcjaxError(
            f"best_fn cannot rate step {step} by its metrics {metrics}: {error!r}",
            hint="save it with the metrics that best_fn reads, or without any: it has no rank then",
        ) from error


def save_policy(options: ocp.CheckpointManagerOptions) -> policies.SaveDecisionPolicy:
    """The policy that decides which steps are saved, as Orbax derives it from its options."""
    if options.save_decision_policy is not None:
        return options.save_decision_policy
    if options.should_save_fn is not None:
        chosen = [ByFunction(options.should_save_fn)]
        return policies.AnySavePolicy([*chosen, policies.PreemptionCheckpointingPolicy()])
    chosen = []
    if options.save_interval_steps:
        chosen.append(policies.FixedIntervalPolicy(options.save_interval_steps))
    if options.save_on_steps:
        chosen.append(policies.SpecificStepsPolicy(options.save_on_steps))
    preempted, first = policies.PreemptionCheckpointingPolicy(), policies.InitialSavePolicy()
    return policies.AnySavePolicy([*chosen, preempted, first])


_PURE = (
    policies.FixedIntervalPolicy,
    policies.SpecificStepsPolicy,
    policies.InitialSavePolicy,
    policies.PreemptionCheckpointingPolicy,  # JAX has all processes agree on the step
)


def is_pure(policy: policies.SaveDecisionPolicy) -> bool:
    """Whether a save policy says the same on all processes: it looks at no clock.

    A user's policy may look at anything.
    """
    if type(policy) is policies.AnySavePolicy:
        return all(map(is_pure, policy.policies))
    return type(policy) in _PURE


class Retention:
    """Which steps keep their data.

    Whatever the policy says, the latest step keeps them, so that training can go on from it.

    Args:
        options: Orbax's, or ours.

    Raises:
        ValueError: a policy is given together with the options that it replaces.
    """

    def __init__(self, options: ocp.CheckpointManagerOptions):
        given = [name for name in _KEEP_OPTIONS if getattr(options, name)]
        if options.preservation_policy is not None and given:
            raise ValueError(
                f"preservation_policy and {', '.join(given)} exclude each other: "
                "say it all in the policy"
            )
        self._policy = options.preservation_policy or _from_options(options)

    def dropped(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that lose their data, of all that there are, in ascending order."""
        if self._policy is None or len(steps) < 2:
            return []
        context = policies.PreservationContext()
        kept = self._policy.should_preserve(as_policies_see(steps), context=context)
        pairs = zip(steps[:-1], list(kept)[:-1], strict=True)
        return [step for step, keep in pairs if not keep]

    def __str__(self) -> str:
        """The policy in words, as it is quoted when a pruned step is restored."""
        return describe(self._policy)


def _from_options(
    options: ocp.CheckpointManagerOptions,
) -> policies.PreservationPolicy | None:
    """The policy that Orbax's older options mean; None if they keep everything."""
    if options.max_to_keep is None:
        return None
    chosen: list[policies.PreservationPolicy] = []
    if options.keep_period is not None:
        chosen.append(policies.EveryNSteps(options.keep_period))
    if options.keep_time_interval is not None:
        seconds = int(options.keep_time_interval.total_seconds())
        chosen.append(policies.EveryNSeconds(seconds))
    if options.best_fn is not None:
        smallest = options.best_mode == "min"
        unranked = options.keep_checkpoints_without_metrics
        best = BestSteps(options.max_to_keep, smallest, unranked)
        chosen.append(cast(policies.PreservationPolicy, best))  # its steps are ours
    else:
        chosen.append(policies.LatestN(options.max_to_keep))
    return chosen[0] if len(chosen) == 1 else policies.AnyPreservationPolicy(chosen)


def describe(policy: object) -> str:
    """A policy in words: its class and fields, or the option that it stands for."""
    match policy:
        case None:
            return "no policy"
        case BestSteps():
            return str(policy)
        case policies.LatestN():
            return f"max_to_keep={policy.n}"
        case policies.AnyPreservationPolicy():
            return " or ".join(map(describe, policy.policies))
    name = type(policy).__qualname__
    if not is_dataclass(policy):
        return name
    shown = []
    for field in fields(policy):
        value = getattr(policy, field.name)
        text = getattr(value, "__qualname__", repr(value)) if callable(value) else repr(value)
        shown.append(f"{field.name.lstrip('_')}={text}")
    return f"{name}({', '.join(shown)})"
