"""The steps that a manager knows or saves: their numbers, commits, metrics and ranks."""

import bisect
import json
import operator
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import SupportsIndex, TypedDict

from vcjax.errors import ProcessError, VcjaxError
from vcjax.history import Commit


@dataclass(frozen=True)
class Step:
    """One saved step, as Orbax's policies look at it.

    Attributes:
        step: its number.
        time: when it was saved, UTC.
        metrics: what `save` was given, as JSON types; None without.
        commit: digest of its commit; empty while it is being saved.
        score: what `best_fn` makes of the metrics; None if the step has no rank.
    """

    step: int
    time: datetime
    metrics: object = None
    commit: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Saving:
    """A save under way.

    Attributes:
        step: what is being saved.
        replaced: the step with the same number before.
        gone: steps that lose their data once it is saved.
        future: the commit.
        thread: identifies the one that called `save`.
    """

    step: Step
    replaced: Step | None
    gone: tuple[Step, ...]
    future: Future[Commit]
    thread: int


class PlanMessage(TypedDict):
    """A `Plan` as MessagePack types. `metrics` are JSON text: integers may be of any size."""

    step: int
    time: str
    metrics: str
    score: float | None
    gone: list[int]
    token: str


@dataclass(frozen=True)
class Plan:
    """What is about to be saved; process 0 makes it for all.

    Attributes:
        step: its commit is not known yet.
        gone: the steps that lose their data once it is saved.
        token: a name that no other save has.
    """

    step: Step
    gone: Sequence[int]
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def told(self) -> PlanMessage:
        """As MessagePack types."""
        return {
            "step": self.step.step,
            "time": self.step.time.isoformat(),
            "metrics": json.dumps(self.step.metrics),
            "score": self.step.score,
            "gone": list(self.gone),
            "token": self.token,
        }

    @classmethod
    def of(cls, told: PlanMessage) -> "Plan":
        """The plan that process 0 has told."""
        moment, metrics = datetime.fromisoformat(told["time"]), json.loads(told["metrics"])
        step = Step(told["step"], moment, metrics, score=told["score"])
        return cls(step, told["gone"], told["token"])


def same_step(steps: Sequence[int]) -> int:
    """The step that all processes save.

    Args:
        steps: of each process.

    Raises:
        ProcessError: they save different ones.
    """
    step = steps[0]
    for process, other in enumerate(steps):
        if other != step:
            raise ProcessError(
                f"process {process} saves step {other}, and process 0 step {step}",
                hint="every process must make the same calls in the same order",
            )
    return step


class StepIndex:
    """Steps by number, ascending. Adding the latest takes the same time however many there are."""

    def __init__(self, steps: Iterable[Step] = ()):
        self._by_number = {step.step: step for step in steps}
        self.ordered: list[Step] = sorted(self._by_number.values(), key=_number)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.ordered)

    def __len__(self) -> int:
        return len(self.ordered)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def get(self, number: int) -> Step | None:
        """The step with this number, if there is one."""
        return self._by_number.get(number)

    @property
    def latest(self) -> Step | None:
        """The step with the largest number."""
        return self.ordered[-1] if self.ordered else None

    def add(self, step: Step) -> None:
        """Adds a step, in the place of the one with its number."""
        at = bisect.bisect_left(self.ordered, step.step, key=_number)
        end = at + (step.step in self._by_number)
        self.ordered[at:end] = [step]
        self._by_number[step.step] = step

    def remove(self, number: int) -> Step | None:
        """Removes the step with this number, if there is one, and gives it back."""
        step = self._by_number.pop(number, None)
        if step is not None:
            at = bisect.bisect_left(self.ordered, number, key=_number)
            del self.ordered[at]
        return step


def _number(step: Step) -> int:
    return step.step


def checked_step(step: SupportsIndex) -> int:
    """The number of a step; any integer type will do.

    Raises:
        VcjaxError: it is no integer, or negative.
    """
    hint = "steps are integers from 0: int, or a NumPy or JAX integer scalar"
    is_truth = isinstance(step, bool) or str(getattr(step, "dtype", "")) == "bool"
    if is_truth:  # which Python, and NumPy 2.0, would take for integers
        raise VcjaxError(f"{step} is not a step", hint=hint)
    try:
        number = operator.index(step)
    except TypeError as error:
        raise VcjaxError(f"{step!r} is not a step", hint=hint) from error
    if number < 0:
        raise VcjaxError(f"step {number} is negative", hint=hint)
    return number
