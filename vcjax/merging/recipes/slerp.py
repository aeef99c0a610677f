"""SLERP of two models on the sphere, and NuSLERP, by weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vcjax.merging.compose import chain
from vcjax.merging.kernels import gram as g
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Products, Share, Totals
from vcjax.merging.steps.basic import add_base, merged, task_vectors
from vcjax.merging.steps.combination import by_gram
from vcjax.merging.steps.sliced import Sliced


@transform()
def arc(t: Coefficient = 0.5, threshold: Coefficient = 0.9995) -> Transform:
    """The point at `t` of the arc between two models; of the chord if nearly colinear."""

    def coefficients(products: Products, weights: Share) -> Share:
        return arc_coefficients(products, weights, t, threshold)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        shares = coefficients(g.gram(stack.values), stack.weights)
        return merged(stack, g.combine(shares, stack.values))

    return Transform(apply, models=(2, 2), slices=lambda dtype: by_gram(coefficients))


def arc_coefficients(
    products: Products, weights: Share, t: Coefficient, threshold: Coefficient
) -> jax.Array:
    """What `arc` multiplies the two models by, given their Gram matrix."""
    cosine = g.unit_gram(products, g.norms(products))[0, 1]
    straight = jnp.abs(lax.stop_gradient(cosine)) > threshold
    return g.slerp_coefficients(jnp.asarray(t, cosine.dtype), cosine, straight)


@recipe
def slerp(t: Coefficient = 0.5) -> MergeMethod:
    r"""Spherical linear interpolation of two models, leaf by leaf.

    .. math:: \frac{\sin((1-t)θ)\,a + \sin(tθ)\,b}{\sin θ}, \quad
        \cos θ = \frac{a·b}{|a||b|}

    and :math:`(1-t)a + tb` where :math:`|\cos θ| > .9995`. `base=` may be given in
    place of the first model.

    Source: Shoemake, 1985; colinearity rule as mergekit's `slerp`.

    Args:
        t: 0 is the first model, 1 the second.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, b = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
        >>> merging.merge([a, b], merging.slerp(0.5))["w"].round(3).tolist()
        [0.7070000171661377, 0.7070000171661377]
    """
    return chain(arc(t))


@transform()
def weighted_arc(flatten: bool = True, row_wise: bool = False) -> Transform:
    """The point of the arc between two values at their share of weight, maybe per row."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        a = stack.values[0]
        axis = None if flatten or a.ndim == 0 else (0 if row_wise else -1)
        coefficients = weighted_arc_coefficients(g.gram(stack.values, axis), stack.weights)
        return merged(stack, g.combine(coefficients, stack.values))

    def slices(dtype: np.dtype) -> Sliced | None:
        return by_gram(weighted_arc_coefficients) if flatten else None

    return Transform(apply, models=(2, 2), weighted=True, slices=slices)


def weighted_arc_coefficients(products: Products, weights: Share) -> Share:
    """What `weighted_arc` multiplies the two values by, given their Gram matrix."""
    lengths = jnp.maximum(g.norms(products), 1e-7)
    cosine = jnp.clip(products[0, 1] / (lengths[0] * lengths[1]), -1, 1)
    total = jnp.sum(weights)
    vanishes = jnp.abs(total) < 1e-6
    t = jnp.where(vanishes, 0.5, weights[1] / jnp.where(vanishes, 1, total))
    return g.slerp_coefficients(t, cosine, jnp.zeros((), bool))


@recipe
def nuslerp(flatten: bool = True, row_wise: bool = False) -> MergeMethod:
    r"""SLERP by weights, of task vectors if a base is given, maybe row by row.

    :math:`t = w_2 / (w_1 + w_2)` (½ if the weights cancel); colinear vectors are
    interpolated on the chord. Antiparallel ones too, where mergekit divides by the
    rounding error of sin π.

    Source: mergekit `nuslerp`.

    Args:
        flatten: one angle per leaf; False: one per vector along an axis.
        row_wise: that axis is the first instead of the last.

    Example:
        >>> from vcjax import merging
        >>> merging.merge([{"w": 1.0}, {"w": 3.0}], merging.nuslerp(), weights=[1, 3])["w"].item()
        2.5
    """
    return chain(task_vectors(False), weighted_arc(flatten, row_wise), add_base(False))
