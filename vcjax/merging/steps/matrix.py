"""What steps on matrices share: leaves as stacks of matrices, and means."""

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from vcjax.merging.kernels.linalg import total
from vcjax.merging.method import Stack
from vcjax.merging.shapes import Value
from vcjax.merging.steps.basic import merged


def matrices(stack: Stack) -> list[Inexact[Array, "layers inputs outputs"]]:
    """The weighted task matrices `[layer, in, out]`."""
    assert stack.view is not None
    return [w * stack.view.matrices(x) for w, x in zip(stack.weights, stack.values, strict=True)]


def restored(stack: Stack, value: Inexact[Array, "layers inputs outputs"]) -> Stack:
    """The stack after a reduction to matrices."""
    assert stack.view is not None
    return merged(stack, stack.view.restore(value, stack.values[0].shape))


def mean_vector(stack: Stack) -> Stack:
    """What leaves without a matrix view become: the weighted mean of task vectors."""
    mean = total(w * x for w, x in zip(stack.weights, stack.values, strict=True))
    return merged(stack, mean / jnp.sum(stack.weights))


def weighted_mean(stack: Stack) -> Value:
    """The mean of the values by the weights of the models."""
    mean = total(w * x for w, x in zip(stack.weights, stack.values, strict=True))
    return mean / jnp.sum(stack.weights)
