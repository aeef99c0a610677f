"""Running a method on the slices of a leaf: what is compiled, and in which order it runs."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.merging.kernels.host_counts import Picks, Quota, Shares
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.run import cast, finish_leaf, split, start_fold
from vcjax.merging.steps.sliced import Sliced, sliced

MEASURED = 4
"""So many models are counted at the same time."""

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


class _Picked(NamedTuple):
    """What the last of a step's measures found out about ties.

    Attributes:
        shares: of each model.
        quota: of the step.
        number: of the pass.
        state: of the step before that pass.
    """

    shares: list[Shares]
    quota: Quota
    number: int
    state: Any


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
        self._picked: dict[int, _Picked] = {}
        self.rewind()

    def rewind(self) -> None:
        """Back to the first slice."""
        self._carries: Any = tuple(way.carry(self.models) for way in self._ways)
        self._apart: list[Any] | None = None
        self._picks: Picks | None = None
        self._slice = 0

    def measure(self, number: int, stack: Stack) -> None:
        """One slice in the pass of this number."""
        at, which = self.plan.passes[number]
        steps = self.plan.steps[: at + 1]
        given = steps, self._facts[: at + 1]
        if not all(step.per_model for step in steps):
            state = tuple(self.states[: at + 1]), self._carries
            moved, found = _measure(*given, stack, *state, which=which)
            self._carries = (*moved, *self._carries[at:])
            self._sums = _added(self._sums, found)
            if len(stack.values[0].devices()) > 1:
                jax.block_until_ready(self._sums)
            return
        if self._apart is None:  # one model at a time, by one small program
            state = tuple(self.states[: at + 1]), self._carries
            self._apart = [(*_of_model(state, i), None) for i in range(self.models)]
            self._picks = Picks(self.models) if self._is_picked(number, stack) else None
            if self._picks is not None and self._is_last(number):
                self._picks.remember()
        apart, picks = self._apart, self._picks
        wide = jax.config.jax_enable_x64  # pyright: ignore

        def measure_model(i: int) -> None:
            one, (states, carries, sums) = _only(stack, i), apart[i]
            with jax.enable_x64(wide):  # each thread has a setting of its own
                how = {"which": which, "picks": picks is not None}
                moved, found = _measure(*given, one, states, carries, **how)
                if picks is not None:
                    [picked] = found
                    found = picks.count(i, *map(np.asarray, picked))[None]
                apart[i] = states, (*moved, *carries[at:]), _added(sums, found)

        if len(stack.values[0].devices()) > 1:
            # Programs that talk between devices wait for each other for ever if two are under way.
            for i in range(self.models):
                measure_model(i)
                jax.block_until_ready(apart[i][2])
            return
        # XLA on CPU counts with one core: several models are counted at once.
        list(_threads().map(measure_model, range(self.models)))

    def conclude(self, number: int) -> None:
        """All slices were seen in the pass of this number."""
        at, which = self.plan.passes[number]
        if self._apart is not None:
            sums = jax.device_get([found for *_, found in self._apart])
            self._sums = jax.tree.map(lambda *x: np.concatenate(x), *sums)
        before, measure = self.states[at], self._ways[at].measures[which]
        if measure.on_host:
            self.states[at] = measure.conclude(self._facts[at], before, jax.device_get(self._sums))
        else:
            given = self._facts[at], before, self._sums
            found = _conclude(self.plan.steps[at], *given, kind=self.plan.dtype, which=which)
            # On the host it costs nothing to take the part of one model.
            self.states[at] = jax.device_get(found)
        quota_of = self._ways[at].quota
        if self._picks is not None and quota_of is not None and self._is_last(number):
            quota = quota_of(self._facts[at], self.states[at])
            self._picked[at] = _Picked(self._picks.shares(quota), quota, number, before)
        self._sums = None
        self.rewind()

    def _is_last(self, number: int) -> bool:
        """Whether no pass of the same step comes after this one."""
        at, which = self.plan.passes[number]
        return which == len(self._ways[at].measures) - 1

    def _is_picked(self, number: int, stack: Stack) -> bool:
        """Whether the host counts in this pass."""
        at, which = self.plan.passes[number]
        [platform] = {device.platform for device in stack.values[0].devices()}
        return platform == "cpu" and self._ways[at].measures[which].pick is not None

    def _set_stops(self, stack: Stack) -> None:
        """Tells the steps which ties of the next slice are kept."""
        carries = list(self._carries)
        for at, picked in self._picked.items():
            stops = [
                shares.stop(
                    self._slice, functools.partial(self._ties, picked, _only(stack, i), carries)
                )
                for i, shares in enumerate(picked.shares)
            ]
            carries[at] = self._ways[at].carry(self.models)._replace(stops=np.array(stops))
        self._carries = tuple(carries)
        self._slice += 1

    def _ties(self, picked: _Picked, one: Stack, carries: Sequence[Any]) -> np.ndarray:
        """Which elements of one model's slice equal the threshold: those picked, once more."""
        at, which = self.plan.passes[picked.number]
        states = (*self.states[:at], picked.state)
        carries = (*carries[:at], self._ways[at].carry(self.models), *carries[at + 1 :])
        given = (_of_model(x, one.model) for x in (states, carries))
        steps, how = self.plan.steps[: at + 1], {"which": which, "picks": True}
        _, [found] = _measure(steps, self._facts[: at + 1], one, *given, **how)
        mask, digits = map(np.asarray, found)
        return mask & (digits == picked.quota.digit[one.model])

    def merge(self, stack: Stack, dtype: Any) -> jax.Array:
        """The merged slice; the memory of the first model's slice may be taken for it."""
        steps, kind = self.plan.steps, np.dtype(dtype)
        given = self._facts, tuple(self.states)
        self._set_stops(stack)
        if len(stack.values) > FEW and self.plan.foldable:
            return self._folded(stack, kind)
        first, stack = stack.values[0], replace(stack, values=stack.values[1:])
        run = _merge_into if first.dtype == kind else _merge
        merged, self._carries = run(steps, first, stack, *given, self._carries, dtype=kind)
        return merged

    def _folded(self, stack: Stack, kind: np.dtype) -> jax.Array:
        accumulators, carries = start_fold(self.plan.steps, stack), []
        for i in range(self.models):
            states, carried = (_of_model(x, i) for x in (tuple(self.states), self._carries))
            accumulators, carry = _fold(
                self.plan.steps, accumulators, _only(stack, i), self._facts, states, carried
            )
            carries.append(carry)
        self._carries = jax.tree.map(lambda *x: jnp.concatenate(x), *carries)
        return finish_leaf(self.plan.steps, accumulators, stack.base, dtype=kind)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    # Each holds what it counts of one model, so a large machine must not hold that of all.
    return ThreadPoolExecutor(min(os.cpu_count() or 1, MEASURED), "vcjax-measure")


def _only(stack: Stack, i: int) -> Stack:
    """The stack of one model."""
    given = {"weights": stack.weights[i : i + 1], "model": np.int32(i)}
    return replace(stack, values=(stack.values[i],), **given)


def _of_model(states: Any, i: Any) -> Any:
    """The part of one model of what per-model steps have found."""
    return jax.tree.map(lambda x: x[i : i + 1], states)


def _through(
    steps: Sequence[Transform], stack: Stack, facts: Any, states: Any, carries: Any
) -> tuple[Stack, tuple[Any, ...]]:
    """The stack after some steps, and what goes from them to the next slice."""
    after = []
    kind = stack.values[0].dtype
    for step, fact, state, carry in zip(steps, facts, states, carries, strict=False):
        way = sliced(step, kind)
        assert way is not None
        stack, moved = way.apply(stack, fact, state, carry)
        after.append(moved)
    return stack, tuple(after)


def _added(sums: Any, found: Any) -> Any:
    """Sums with what one more slice adds; apart, so that the first slice needs no program more."""
    if sums is None:
        return found
    return sums + found if isinstance(found, np.ndarray) else _add(sums, found)


@functools.partial(jax.jit, donate_argnames="sums")
def _add(sums: Any, found: Any) -> Any:
    return jax.tree.map(jnp.add, sums, found)


@functools.partial(jax.jit, static_argnames=("which", "picks"))
def _measure(
    steps: tuple[Transform, ...],
    facts: Any,
    stack: Stack,
    states: Any,
    carries: Any,
    *,
    which: int,
    picks: bool = False,
) -> tuple[Any, Any]:
    """What goes to the next slice from the steps before the last, and what this one adds.

    With `picks` that is what the host counts.
    """
    stack = cast(stack)
    way = sliced(steps[-1], stack.values[0].dtype)
    assert way is not None
    measure = way.measures[which]
    take = measure.pick if picks else measure.take
    assert take is not None
    stack, carries = _through(steps[:-1], stack, facts, states, carries)
    return carries, take(stack, facts[-1], states[-1])


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
