"""Running a method on leaves: what is compiled together, and what one after the other."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from vcjax.merging.mesh import on_any_mesh
from vcjax.merging.method import Fold, MergeMethod, Stack, Transform
from vcjax.merging.shapes import Totals, Value


def run(
    method: MergeMethod, stacks: list[Stack], dtype: DTypeLike | None = None
) -> list[jax.Array]:
    """Runs a method without rules on the leaves of a model.

    Steps with rounds see sums over all `stacks`, so these must be the whole model
    (or the whole part of it that the method decides).
    """
    kinds = [np.dtype(dtype or stack.values[0].dtype) for stack in stacks]
    pairs = list(zip(stacks, kinds, strict=True))
    if any(step.rounds for step in method.transforms):
        return run_rounds(method.transforms, stacks, kinds)
    if method.foldable and any(s.locality == "leaf" for s in split(method.transforms)[0]):
        # Selection is long to compile: once for one model beats once for N of them.
        return [run_folded(method.transforms, stack, kind) for stack, kind in pairs]
    return [run_leaf(method.transforms, stack, dtype=kind) for stack, kind in pairs]


def run_rounds(
    steps: tuple[Transform, ...], stacks: list[Stack], kinds: Sequence[DTypeLike]
) -> list[Value]:
    """Step by step over all leaves, with the sums that steps ask for in between."""
    size = sum(stack.values[0].size for stack in stacks)
    stacks = [
        cast(replace(stack, at=jnp.int32(i), leaves=len(stacks), size=size))
        for i, stack in enumerate(stacks)
    ]
    for step in steps:
        totals: Totals = ()
        for number in range(len(step.rounds)):
            parts = [run_round(step, stack, totals, number=number) for stack in stacks]
            totals = (*totals, jax.tree.map(lambda *x: sum(x[1:], x[0]), *parts))
        stacks = [run_step(step, stack, totals) for stack in stacks]
    return [stack.values[0].astype(kind) for stack, kind in zip(stacks, kinds, strict=True)]


def run_folded(steps: tuple[Transform, ...], stack: Stack, dtype: DTypeLike) -> jax.Array:
    """One leaf, model by model."""
    state = start_fold(steps, stack)
    for i, value in enumerate(stack.values):
        one = replace(stack, values=(value,), weights=stack.weights[i : i + 1], model=jnp.int32(i))
        state = fold_leaf(steps, state, one)
    return finish_leaf(steps, state, stack.base, dtype=dtype)


@functools.partial(jax.jit, static_argnames="dtype")
@on_any_mesh
def run_leaf(steps: tuple[Transform, ...], stack: Stack, *, dtype: DTypeLike) -> jax.Array:
    """All steps on one leaf, compiled once per method, shape and dtypes."""
    stack = cast(stack)
    for step in steps:
        stack = step.apply(stack, ())
    return stack.values[0].astype(dtype)


@functools.partial(jax.jit, static_argnames="number")
@on_any_mesh
def run_round(step: Transform, stack: Stack, totals: Totals, *, number: int) -> PyTree:
    """One round of a whole-model step on one leaf."""
    return step.rounds[number](stack, totals)


@jax.jit
@on_any_mesh
def run_step(step: Transform, stack: Stack, totals: Totals) -> Stack:
    """One step on one leaf."""
    return step.apply(stack, totals)


def compute_dtype(*arrays: ArrayLike) -> np.dtype:
    """The dtype that leaves are merged in: float32, wider if any of them is."""
    kinds = [jnp.asarray(x).dtype for x in arrays]
    return jnp.result_type(jnp.float32, *(kind for kind in kinds if not _is_narrow(kind)))


def _is_narrow(kind: np.dtype) -> bool:
    """Whether float32 holds every number of a dtype; JAX promotes none of the 8-bit ones."""
    return jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4


@jax.jit
@on_any_mesh
def cast(stack: Stack) -> Stack:
    """The stack in the dtype of the computation."""
    arrays = stack.values if stack.base is None else (*stack.values, stack.base)
    kind = compute_dtype(*arrays)
    return replace(
        stack,
        values=tuple(x.astype(kind) for x in stack.values),
        base=None if stack.base is None else stack.base.astype(kind),
        weights=stack.weights.astype(jnp.finfo(kind).dtype),
    )


def split(
    steps: tuple[Transform, ...],
) -> tuple[tuple[Transform, ...], Fold, tuple[Transform, ...]]:
    """(per-model steps, the fold of the reduction, steps after it)."""
    at = next(i for i, step in enumerate(steps) if step.fold)
    before = tuple(step for step in steps[:at] if not step.folds_away)
    reduction = steps[at].fold
    assert reduction is not None
    return before, reduction, steps[at + 1 :]


def start_fold(steps: tuple[Transform, ...], stack: Stack) -> PyTree:
    """The accumulators of a leaf before any model, placed as the leaf is."""
    arrays = stack.values if stack.base is None else (*stack.values, stack.base)
    like = stack.values[0]
    if like.dtype != (kind := compute_dtype(*arrays)):
        like = jnp.zeros_like(like, kind)
    return split(steps)[1].init(like)


@functools.partial(jax.jit, donate_argnames="state")
@on_any_mesh
def fold_leaf(steps: tuple[Transform, ...], state: PyTree, stack: Stack) -> PyTree:
    """The accumulators of a leaf with one more model; those given are used up."""
    before, reduction, _ = split(steps)
    stack = cast(stack)
    for step in before:
        stack = step.apply(stack, ())
    return reduction.update(state, stack.values[0], stack.weights[0])


@functools.partial(jax.jit, static_argnames="dtype")
@on_any_mesh
def finish_leaf(
    steps: tuple[Transform, ...], state: PyTree, base: Value | None, *, dtype: DTypeLike
) -> jax.Array:
    """The merged leaf of its accumulators."""
    _, reduction, after = split(steps)
    value = reduction.finish(state)
    stack = Stack((value,), None if base is None else base.astype(value.dtype), jnp.ones(1))
    for step in after:
        stack = step.apply(stack, ())
    return stack.values[0].astype(dtype)
