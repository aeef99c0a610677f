"""Steps that make one value of N: weighted sums, and means of the values of one sign."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vcjax.merging.kernels.linalg import safe_divide
from vcjax.merging.makers import chosen, transform
from vcjax.merging.method import Stack, Transform
from vcjax.merging.shapes import Totals, Value
from vcjax.merging.steps.basic import merged


@dataclass(frozen=True)
class SumFold:
    """Folds a weighted sum: the sum and the sum of the weights."""

    normalize: bool

    def init(self, like: Value) -> PyTree:
        """No models yet."""
        return jnp.zeros_like(like), jnp.zeros((), jnp.finfo(like.dtype).dtype)

    def update(self, state: PyTree, value: Value, weight: Float[Array, ""]) -> PyTree:
        """One more model."""
        total, weights = state
        return total + weight * value, weights + weight

    def finish(self, state: PyTree) -> Value:
        """The (normalised) sum."""
        total, weights = state
        return normalised(total, weights) if self.normalize else total


def normalised(total: Value, weights: Float[Array, ""]) -> Value:
    """`total / weights`, and `total` where the weights cancel (below 1e-8, as mergekit)."""
    return total / jnp.where(jnp.abs(weights) < 1e-8, jnp.ones_like(weights), weights)


@transform()
def weighted_sum(normalize: bool = False) -> Transform:
    r""":math:`\sum w_i x_i`, divided by :math:`\sum w_i` if `normalize`."""
    fold = SumFold(normalize)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        state = fold.init(stack.values[0])
        for i, value in enumerate(stack.values):
            state = fold.update(state, value, stack.weights[i])
        return merged(stack, fold.finish(state))

    return Transform(apply, locality="element", linear=True, weighted=True, fold=fold)


@transform()
def elect_sign(by: str = "sum") -> Transform:
    r"""Elects a sign per element and marks the values that have it.

    :math:`γ = \operatorname{sign} \sum w_i τ_i`, + where the sum is 0 (mergekit);
    values that are 0 never agree. Source: Yadav et al., 2023 (TIES), §3.2.

    Args:
        by: "sum" weighs signs by magnitude, "count" counts them.
    """
    chosen("by", by, "sum", "count")

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        votes = [x * stack.weights[i] for i, x in enumerate(stack.values)]
        ballots = votes if by == "sum" else [jnp.sign(v) for v in votes]
        positive = sum(ballots[1:], ballots[0]) >= 0
        agree = [jnp.where(positive, v > 0, v < 0) | jnp.isnan(v) for v in votes]
        return replace(stack, agree=tuple(agree))

    return Transform(apply, locality="element", weighted=True, folds_away=by == "sum")


@dataclass(frozen=True)
class SignedFold:
    """Folds sign election by sum and disjoint mean: one sum for either sign."""

    normalize: bool

    def init(self, like: Value) -> PyTree:
        """No models yet: positive sum, its weights, negative sum, its weights."""
        return tuple(jnp.zeros_like(like) for _ in range(4))

    def update(self, state: PyTree, value: Value, weight: Float[Array, ""]) -> PyTree:
        """One more model."""
        up, up_weight, down, down_weight = state
        vote = value * weight
        rises, falls = (vote > 0) | jnp.isnan(vote), vote < 0
        return (
            up + jnp.where(rises, vote, 0),
            up_weight + jnp.where(rises, weight, 0),
            down + jnp.where(falls, vote, 0),
            down_weight + jnp.where(falls, weight, 0),
        )

    def finish(self, state: PyTree) -> Value:
        """The sum (or mean) of the sign with the larger sum; NaN stays."""
        up, up_weight, down, down_weight = state
        positive = ~(up + down < 0)
        total = jnp.where(positive, up, down)
        weights = jnp.where(positive, up_weight, down_weight)
        return safe_divide(total, weights) if self.normalize else total


@transform()
def disjoint_mean(normalize: bool = True) -> Transform:
    r"""The mean of the values that agree: :math:`\sum w_i m_i τ_i / \sum w_i m_i`.

    Zero where none agrees. Source: Yadav et al., 2023 (TIES), §3.3.

    Args:
        normalize: divide by the weights of those that agree.
    """

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        agree = stack.agree or tuple(x != 0 for x in stack.values)
        total = jnp.zeros_like(stack.values[0])
        weights = jnp.zeros_like(total)
        for i, (x, m) in enumerate(zip(stack.values, agree, strict=True)):
            total = total + jnp.where(m, x * stack.weights[i], 0)
            weights = weights + jnp.where(m, stack.weights[i], 0)
        return merged(stack, safe_divide(total, weights) if normalize else total)

    return Transform(apply, locality="element", weighted=True, fold=SignedFold(normalize))
