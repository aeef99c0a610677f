"""Steps on task vectors and the base, and what all steps share.

Steps before a reduction work on N values, the reduction makes one of them, and
steps after it work on the merged value. A NaN of any model stays: it is the
largest magnitude of its leaf, is never masked away, and agrees with every sign.
"""

from dataclasses import replace

import jax.numpy as jnp

from vcjax.merging.makers import transform
from vcjax.merging.method import Stack, Transform
from vcjax.merging.shapes import Coefficient, Mask, Totals, Value


def mapped(stack: Stack, values: list[Value]) -> Stack:
    """The stack with other values."""
    return replace(stack, values=tuple(values))


def merged(stack: Stack, value: Value) -> Stack:
    """The stack after a reduction."""
    return replace(stack, values=(value,), agree=None)


def keep_where(mask: Mask, value: Value) -> Value:
    """`value` where `mask`, zero elsewhere; NaN stays."""
    return jnp.where(mask | jnp.isnan(value), value, jnp.zeros((), value.dtype))


@transform()
def task_vectors(required: bool = True) -> Transform:
    r"""Task vectors :math:`τ_i = x_i - b` (Ilharco et al., 2023, §2).

    Args:
        required: without a base, raise; if False, leave the models as they are.
    """

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.base is None:
            return stack
        return mapped(stack, [x - stack.base for x in stack.values])

    return Transform(apply, locality="element", per_model=True, needs_base=required, linear=True)


@transform()
def add_base(required: bool = True) -> Transform:
    """Adds the base model to the merged task vector.

    Args:
        required: without a base, raise; if False, leave the value as it is.
    """

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.base is None:
            return stack
        return mapped(stack, [stack.base + x for x in stack.values])

    return Transform(apply, locality="element", needs_base=required, linear=True)


@transform()
def scale_by(factor: Coefficient) -> Transform:
    """Multiplies by a factor; a negative one negates a task (Ilharco et al., 2023, §3)."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        return mapped(stack, [(x * factor).astype(x.dtype) for x in stack.values])

    return Transform(apply, locality="element", linear=True)


@transform()
def take(position: int = 0) -> Transform:
    """The value of one model."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        return merged(stack, stack.values[position])

    return Transform(apply, locality="element", linear=True, models=(position + 1, None))


@transform()
def take_base() -> Transform:
    """The base model if there is one, else the first model."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        return merged(stack, stack.values[0] if stack.base is None else stack.base)

    return Transform(apply, locality="element", linear=True)
