"""`MergeRequest`: everything that a merge by history was asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vcjax import merging
from vcjax.history import Commit, LeafEntry
from vcjax.merging.config import record_of_weights
from vcjax.streaming.destination import StoreOutput
from vcjax.streaming.job import Job
from vcjax.threeway.rules import Rules

Runner = Callable[[Sequence[Job], str], dict[str, LeafEntry]]
"""Makes merged leaves: from jobs, and a digest of what they are, their entries."""


@dataclass(frozen=True)
class MergeRequest:
    """Everything that `Repository.merge` was asked for; see there.

    Attributes:
        sides: what is merged, ours first.
        names: of the sides, as the user wrote them.
        method: for what no rule settles.
        resolve: the rules.
        weights: for the method, one per side.
        key: for the method.
        message: of the commit.
        author: of the commit.
        metadata: of the commit.
        metrics: of the commit.
        progress: called with bytes.
        stored: is added to: what to forget once there is a commit.
        run: makes merged leaves; by default they are stored.
    """

    sides: tuple[Commit, ...]
    names: tuple[str, ...]
    method: "merging.MergeMethod | None" = None
    resolve: Rules | None = None
    weights: Any = None
    key: Any = None
    message: str | None = None
    author: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None
    stored: list[StoreOutput] = field(default_factory=list)
    run: Runner | None = None

    def among(self, kept: Sequence[int]) -> "MergeRequest":
        """The same of some of the sides."""
        if len(kept) == len(self.sides):
            return self
        return replace(
            self,
            sides=tuple(self.sides[at] for at in kept),
            names=tuple(self.names[at] for at in kept),
            weights=_weights_among(self.weights, kept, len(self.sides)),
        )


def _weights_among(weights: Any, kept: Sequence[int], count: int) -> Any:
    """The weights of some of the sides, if there are as many as sides."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        return {glob: _weights_among(each, kept, count) for glob, each in weights.items()}
    numbers = record_of_weights(weights)
    fits = isinstance(numbers, list) and len(numbers) == count
    return [numbers[at] for at in kept] if fits else weights
