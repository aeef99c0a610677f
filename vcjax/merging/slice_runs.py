"""Running a method on the slices of a leaf: what is compiled, and in which order it runs."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.run import cast, finish_leaf, split, start_fold
from vcjax.merging.slicing import Sliced, sliced

FEW = 8
"""Up to so many models are merged by one program; more, where the method folds, one by one into
accumulators, so that programs stay small."""


@dataclass(frozen=True)
class SlicePlan:
    """How a method without rules merges a leaf by slices.

    Attributes:
        steps: of the method.
        dtype: of the computation.
        rows: whether slices must be rows of the leaf.
        foldable: whether models can be taken one at a time.
        passes: (position of the step, number of its measure), in order: each is a pass
            over all slices that comes before the one that merges.
    """

    steps: tuple[Transform, ...]
    dtype: np.dtype
    rows: bool
    foldable: bool
    passes: tuple[tuple[int, int], ...]


def plan_slices(method: MergeMethod, dtype: Any, axes: int) -> SlicePlan | None:
    """How a method without rules runs on slices of leaves; None if a step must see them whole.

    Args:
        method: without rules.
        dtype: of the computation.
        axes: how many the leaf has.
    """
    kind = np.dtype(dtype)
    ways = _ways(method.transforms, kind)
    if ways is None or kind.kind == "c" or any(axes < way.axes for way in ways):
        return None
    passes = [(i, j) for i, way in enumerate(ways) for j in range(len(way.measures))]
    rows = any(way.rows for way in ways)
    return SlicePlan(method.transforms, kind, rows, method.foldable, tuple(passes))


def _ways(steps: Sequence[Transform], kind: np.dtype) -> list[Sliced] | None:
    ways = [sliced(step, kind) for step in steps]
    return None if None in ways else [way for way in ways if way is not None]


@dataclass
class SliceRun:
    """One leaf on its way through the passes of a plan.

    Attributes:
        plan: of its method.
        models: how many there are.
        size: of the leaf, elements.
        states: per step, what its measures said so far.
    """

    plan: SlicePlan
    models: int
    size: int
    states: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._ways = _ways(self.plan.steps, self.plan.dtype) or []
        self._facts = tuple(way.facts(self.size) for way in self._ways)
        self.states = [()] * len(self._ways)
        self._sums: Any = None
        self.rewind()

    def rewind(self) -> None:
        """Back to the first slice."""
        self._carries: Any = tuple(way.carry(self.models) for way in self._ways)
        self._apart: list[Any] | None = None

    def measure(self, number: int, stack: Stack) -> None:
        """One slice in the pass of this number."""
        at, which = self.plan.passes[number]
        steps = self.plan.steps[: at + 1]
        given = steps, self._facts[: at + 1]
        if not all(step.per_model for step in steps):
            state = tuple(self.states[: at + 1]), self._carries, self._sums
            self._carries, self._sums = _measure(*given, stack, *state, which=which)
            return
        if self._apart is None:  # one model at a time, by one small program
            state = tuple(self.states[: at + 1]), self._carries
            self._apart = [(*_of_model(state, i), None) for i in range(self.models)]
        apart, wide = self._apart, jax.config.jax_enable_x64  # pyright: ignore

        def measure_model(i: int) -> None:
            one = replace(
                stack,
                values=(stack.values[i],),
                weights=stack.weights[i : i + 1],
                model=np.int32(i),
            )
            with jax.enable_x64(wide):  # each thread has a setting of its own
                found = _measure(*given, one, *apart[i], which=which)
            apart[i] = (apart[i][0], *found)

        # XLA counts with one core: two models are counted at once.
        list(_threads().map(measure_model, range(self.models)))

    def conclude(self, number: int) -> None:
        """All slices were seen in the pass of this number."""
        at, which = self.plan.passes[number]
        if self._apart is not None:
            self._sums = jax.tree.map(lambda *x: jnp.concatenate(x), *(s for *_, s in self._apart))
        self.states[at] = _conclude(
            self.plan.steps[at],
            self._facts[at],
            self.states[at],
            self._sums,
            kind=self.plan.dtype,
            which=which,
        )
        self._sums = None
        self.rewind()

    def merge(self, stack: Stack, dtype: Any) -> jax.Array:
        """The merged slice; the memory of the first model's slice may be taken for it."""
        steps, kind = self.plan.steps, np.dtype(dtype)
        given = self._facts, tuple(self.states)
        if len(stack.values) > FEW and self.plan.foldable:
            return self._folded(stack, kind)
        first, stack = stack.values[0], replace(stack, values=stack.values[1:])
        run = _merge_into if first.dtype == kind else _merge
        merged, self._carries = run(steps, first, stack, *given, self._carries, dtype=kind)
        return merged

    def _folded(self, stack: Stack, kind: np.dtype) -> jax.Array:
        accumulators, carries = start_fold(self.plan.steps, stack), []
        for i, value in enumerate(stack.values):
            one = replace(
                stack, values=(value,), weights=stack.weights[i : i + 1], model=np.int32(i)
            )
            states, carried = (_of_model(x, i) for x in (tuple(self.states), self._carries))
            accumulators, carry = _fold(
                self.plan.steps, accumulators, one, self._facts, states, carried
            )
            carries.append(carry)
        self._carries = jax.tree.map(lambda *x: jnp.concatenate(x), *carries)
        return finish_leaf(self.plan.steps, accumulators, stack.base, dtype=kind)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "vcjax-measure")


def _of_model(states: Any, i: int) -> Any:
    """The part of one model of what per-model steps have found."""
    return jax.tree.map(lambda x: x[i : i + 1], states)


def _through(
    steps: Sequence[Transform], stack: Stack, facts: Any, states: Any, carries: Any
) -> tuple[Stack, tuple[Any, ...]]:
    """The stack after some steps, and what goes to the next slice."""
    after = []
    kind = stack.values[0].dtype
    for step, fact, state, carry in zip(steps, facts, states, carries, strict=False):
        way = sliced(step, kind)
        assert way is not None
        stack, moved = way.apply(stack, fact, state, carry)
        after.append(moved)
    return stack, (*after, *carries[len(after) :])


@functools.partial(jax.jit, static_argnames="which", donate_argnames="sums")
def _measure(
    steps: tuple[Transform, ...],
    facts: Any,
    stack: Stack,
    states: Any,
    carries: Any,
    sums: Any,
    *,
    which: int,
) -> tuple[Any, Any]:
    """What goes to the next slice, and the sums with what this one adds."""
    stack = cast(stack)
    way = sliced(steps[-1], stack.values[0].dtype)
    assert way is not None
    stack, carries = _through(steps[:-1], stack, facts, states, carries)
    found = way.measures[which].take(stack, facts[-1], states[-1])
    return carries, found if sums is None else jax.tree.map(jnp.add, sums, found)


@functools.partial(jax.jit, static_argnames=("kind", "which"))
def _conclude(step: Transform, facts: Any, state: Any, sums: Any, *, kind: Any, which: int) -> Any:
    way = sliced(step, kind)
    assert way is not None
    return way.measures[which].conclude(facts, state, sums)


@functools.partial(jax.jit, donate_argnames="accumulators")
def _fold(
    steps: tuple[Transform, ...],
    accumulators: Any,
    stack: Stack,
    facts: Any,
    states: Any,
    carries: Any,
) -> tuple[Any, Any]:
    """The accumulators with one more model, and what goes to the next slice."""
    _, reduction, _ = split(steps)
    stack = cast(stack)
    for i, step in enumerate(steps):
        if step.fold is not None:
            break
        if not step.folds_away:
            stack, moved = _through(
                (step,), stack, facts[i : i + 1], states[i : i + 1], carries[i : i + 1]
            )
            carries = (*carries[:i], *moved, *carries[i + 1 :])
    return reduction.update(accumulators, stack.values[0], stack.weights[0]), carries


def _merge_slice(
    steps: tuple[Transform, ...],
    first: jax.Array,
    stack: Stack,
    facts: Any,
    states: Any,
    carries: Any,
    *,
    dtype: Any,
) -> tuple[jax.Array, Any]:
    stack = cast(replace(stack, values=(first, *stack.values)))
    stack, carries = _through(steps, stack, facts, states, carries)
    return stack.values[0].astype(dtype), carries


_merge = jax.jit(_merge_slice, static_argnames="dtype")
_merge_into = jax.jit(_merge_slice, static_argnames="dtype", donate_argnames="first")
