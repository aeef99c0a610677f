"""Arcee Fusion: only the elements of the second model whose change matters most are taken."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from vcjax.merging.compose import chain
from vcjax.merging.kernels.top_k import order_statistic
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Totals
from vcjax.merging.steps.basic import merged


def importance(
    a: Inexact[Array, "*rows columns"], b: Inexact[Array, "*rows columns"]
) -> Inexact[Array, "*rows columns"]:
    """:math:`|b - a|` times the divergence of the softmax of `b`'s row from `a`'s."""
    p = jax.nn.softmax(b, axis=-1) + 1e-8
    q = jax.nn.softmax(a, axis=-1) + 1e-8
    divergence = jnp.sum(p * jnp.log(p / q), axis=-1, keepdims=True)
    return jnp.abs(b - a) * divergence


@transform()
def fuse_important() -> Transform:
    """Takes the second model where its importance is an outlier of the leaf."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        a, b = stack.values
        row_a, row_b = (x.reshape(1) if x.ndim == 0 else x for x in (a, b))
        scores = jax.lax.stop_gradient(importance(row_a, row_b)).reshape(a.shape)
        # Ranks as mergekit's on up to a million elements: truncated, not interpolated.
        low, median, high = (
            order_statistic(scores, quarter * (scores.size - 1) // 4) for quarter in (1, 2, 3)
        )
        outlier = (scores >= median + 1.5 * (high - low)) | jnp.isnan(scores)
        return merged(stack, a + jnp.where(outlier | jnp.isnan(b), b - a, 0))

    return Transform(apply, models=(2, 2))


@recipe
def arcee_fusion() -> MergeMethod:
    r"""Takes from the second model only the elements that matter most.

    Importance is :math:`|b - a| · KL(\mathrm{softmax}\,b \,\|\, \mathrm{softmax}\,a)`,
    softmax over the last axis; elements at or above median + 1.5 × interquartile
    range are taken. Quantiles are exact, where mergekit samples a million elements.
    `base=` may be given in place of the first model.

    Source: mergekit `arcee_fusion` (Arcee, 2024).

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 1.0}, {"w": 3.0}
        >>> merging.merge([a, b], merging.arcee_fusion())["w"].item()
        3.0
    """
    return chain(fuse_important())
