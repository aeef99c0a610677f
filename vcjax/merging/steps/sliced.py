"""Methods on slices of leaves, so that no leaf need be in memory whole.

Steps that treat every element alone run on any slice. Of the others, those with
`Transform.slices` say how they do it: by measures (histograms, inner products) that
add up over slices, conclusions drawn from the sums, and what is then done to a slice.
Slices of a leaf are visited in order, once per measure and once to merge.

A slice is a flat piece of the leaf in C order; where random numbers or ranks in a
row are asked for, it is some of its rows. The last one is padded with zeros,
which change no sum, and are the last among equal magnitudes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vcjax.merging.kernels.host_counts import Quota
from vcjax.merging.method import Apply, Stack, Transform

Facts = PyTree
"""Numbers that follow from the size of the leaf alone."""

SliceApply = Callable[[Stack, Facts, PyTree, PyTree], tuple[Stack, PyTree]]
"""What is done to a slice: (stack, facts, state, carry) -> (stack, carry)."""


class Measure(NamedTuple):
    """One pass over the slices of a leaf.

    Attributes:
        take: (stack, facts, state) -> numbers, which are summed over the slices.
        conclude: (facts, state, sums) -> the next state.
        on_host: whether that is for NumPy, and not to be jitted.
        pick: (stack, facts, state) -> for each model a mask of what a histogram counts, and
            digits below 2^16: what `take` gives, as the host makes it (`Picks`).
    """

    take: Callable[[Stack, Facts, PyTree], PyTree]
    conclude: Callable[[Facts, PyTree, PyTree], PyTree]
    on_host: bool = False
    pick: Callable[[Stack, Facts, PyTree], PyTree] | None = None


def _nothing(size: int) -> Facts:
    return ()


def _no_carry(models: int) -> PyTree:
    return ()


class Sliced(NamedTuple):
    """How a step works on slices.

    Attributes:
        apply: (stack, facts, state, carry) -> (stack, carry).
        measures: passes that come before, each with the state of the one before it.
        facts: from the size of the leaf.
        carry: what goes from one slice to the next, before the first.
        rows: whether slices must be whole rows.
        axes: fewest axes of a leaf; one of fewer must be seen whole.
        quota: (facts, state) -> what of the last measure's picks is kept.
    """

    apply: SliceApply
    measures: tuple[Measure, ...] = ()
    facts: Callable[[int], Facts] = _nothing
    carry: Callable[[int], PyTree] = _no_carry
    rows: bool = False
    axes: int = 1
    quota: Callable[[Facts, PyTree], Quota] | None = None


def sliced(step: Transform, dtype: DTypeLike = np.float32) -> Sliced | None:
    """How a step works on slices; None if it must see the leaf.

    Args:
        step: a step of a method.
        dtype: of the computation.
    """
    if step.rounds:
        return None
    if step.slices is not None:
        return step.slices(np.dtype(dtype))
    if step.locality != "element":
        return None
    return Sliced(plain(step.apply), rows=step.random)


def plain(apply: Apply) -> SliceApply:
    """What a step that treats every element alone does to a slice: the same."""
    return lambda stack, facts, state, carry: (apply(stack, ()), carry)
