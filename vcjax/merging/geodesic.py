"""Methods on the sphere: SLERP, NuSLERP, multi-SLERP, Karcher mean, Model Stock."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vcjax.merging import gram as g
from vcjax.merging.atoms import add_base, merged, safe_divide, task_vectors
from vcjax.merging.compose import chain
from vcjax.merging.method import MergeMethod, Stack, Transform, chosen, recipe, transform


@transform()
def arc(t: Any = 0.5, threshold: float = 0.9995) -> Transform:
    """The point at `t` of the arc between two models; of the chord if nearly colinear."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        coefficients = arc_coefficients(g.gram(stack.values), stack.weights, t, threshold)
        return merged(stack, g.combine(coefficients, stack.values))

    return Transform(apply, models=(2, 2))


def arc_coefficients(
    products: jax.Array, weights: jax.Array, t: Any, threshold: float
) -> jax.Array:
    """What `arc` multiplies the two models by, given their Gram matrix."""
    cosine = g.unit_gram(products, g.norms(products))[0, 1]
    straight = jnp.abs(lax.stop_gradient(cosine)) > threshold
    return g.slerp_coefficients(jnp.asarray(t, cosine.dtype), cosine, straight)


@recipe
def slerp(t: Any = 0.5) -> MergeMethod:
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

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        a = stack.values[0]
        axis = None if flatten or a.ndim == 0 else (0 if row_wise else -1)
        coefficients = weighted_arc_coefficients(g.gram(stack.values, axis), stack.weights)
        return merged(stack, g.combine(coefficients, stack.values))

    return Transform(apply, models=(2, 2), weighted=True)


def weighted_arc_coefficients(products: jax.Array, weights: jax.Array) -> jax.Array:
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


@transform()
def spherical_mean(
    iterations: int = 0, tol: float = 1e-5, normalize: bool = True, eps: float = 0.0
) -> Transform:
    """The mean direction times the mean norm; `iterations` steps towards the Karcher mean."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        products = g.gram(stack.values)
        coefficients = spherical_coefficients(
            products, stack.weights, iterations, tol, normalize, eps
        )
        return merged(stack, g.combine(coefficients, stack.values))

    return Transform(apply, weighted=True)


def spherical_coefficients(
    products: jax.Array,
    weights: jax.Array,
    iterations: int,
    tol: float,
    normalize: bool,
    eps: float,
) -> jax.Array:
    """What `spherical_mean` multiplies the values by, given their Gram matrix."""
    if normalize:
        weights = weights / jnp.sum(weights)
    lengths = g.norms(products)
    units = 1 / jnp.where(lengths == 0, 1, lengths + eps)
    cosines = products * units[:, None] * units[None, :]
    share = jnp.where(lengths > tol, weights, 0)
    share = share / jnp.where(jnp.sum(share) == 0, 1, jnp.sum(share)) if normalize else share
    coefficients = karcher_mean(cosines, share, iterations, tol) * units
    on_sphere = jnp.sum(weights * lengths) * coefficients
    # Vectors that cancel have no mean direction: their linear mean is 0 or nearly so.
    cancels = g.length(cosines, share) < tol
    return jnp.where(cancels, weights, on_sphere)


def karcher_mean(cosines: jax.Array, weights: jax.Array, iterations: int, tol: float) -> jax.Array:
    """Coefficients, over unit vectors, of their Karcher mean on the sphere.

    Starts at the normalised weighted mean; each step moves along the mean of the
    log maps until that is shorter than `tol`.
    """
    size = g.length(cosines, weights)
    mean = safe_divide(weights, size)

    def step(_: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mean, done = state
        tangent, size = g.log_step(cosines, weights, mean, tol)
        done = done | (size < tol)
        moved = g.exp_step(mean, tangent, size)
        moved = safe_divide(moved, g.length(cosines, moved))
        return jnp.where(done, mean, moved), done

    return lax.fori_loop(0, iterations, step, (mean, jnp.zeros((), bool)))[0]


@recipe
def multislerp(normalize_weights: bool = True, log_map: bool = False) -> MergeMethod:
    r"""Barycentre on the sphere: mean direction times mean norm.

    :math:`\frac{\sum w_i u_i}{|\sum w_i u_i|} \sum w_i |x_i|` with unit
    :math:`u_i`, of task vectors if a base is given. mergekit projects onto the
    tangent space at that mean without the log map, which cannot move it: the sum of
    projections is 0 by construction. `log_map=True` takes the log map and moves.
    Vectors whose mean vanishes are averaged (mergekit: an error for more than two).

    Source: mergekit `multislerp` (Goddard, 2025).

    Args:
        normalize_weights: make the weights sum to 1.
        log_map: one exponential step along the mean of the log maps.

    Example:
        >>> from vcjax import merging
        >>> merging.merge([{"w": 1.0}, {"w": 2.0}, {"w": 6.0}], merging.multislerp())["w"].item()
        3.0
    """
    mean = spherical_mean(1 if log_map else 0, 1e-8, normalize_weights, 1e-8)
    return chain(task_vectors(False), mean, add_base(False))


@recipe
def karcher(iterations: int = 10, tol: float = 1e-5) -> MergeMethod:
    r"""The Karcher mean of the models on the sphere, times their mean norm.

    The point with :math:`\sum w_i \log_m u_i = 0`, by Riemannian gradient steps of
    length 1 in the basis of the models.

    Source: Karcher, 1977; mergekit `karcher`, which iterates in the models' dtype.

    Args:
        iterations: at most so many steps.
        tol: stop when the mean tangent is shorter.

    Example:
        >>> from vcjax import merging
        >>> merging.merge([{"w": 1.0}, {"w": 3.0}], merging.karcher())["w"].item()
        2.0
    """
    return chain(spherical_mean(iterations, tol))


@transform("eps")
def stock_ratio(average: str = "cosine", axis: int | None = None, eps: float = 1e-6) -> Transform:
    """The mean task vector times Model Stock's ratio t."""
    chosen("average", average, "cosine", "angle")

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        n = len(stack.values)
        products = g.gram(stack.values, axis if stack.values[0].ndim else None)
        mean = sum(stack.values[1:], stack.values[0]) / n
        return merged(replace(stack), stock_share(products, average, eps) * mean)

    return Transform(apply, models=(2, None))


def stock_share(products: jax.Array, average: str, eps: float) -> jax.Array:
    """Model Stock's ratio t, given the Gram matrix of the task vectors."""
    n = products.shape[0]
    lengths = g.norms(products)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    cosines = jnp.stack(
        [
            jnp.clip(products[i, j] / jnp.maximum(lengths[i] * lengths[j], eps), -1, 1)
            for i, j in pairs
        ]
    )
    if average == "cosine":
        cosine = jnp.mean(cosines, axis=0)
    else:
        cosine = jnp.cos(jnp.mean(g.angle(cosines)[0], axis=0))
    return safe_divide(n * cosine, 1 + (n - 1) * cosine)


@recipe
def model_stock(
    filter_wise: bool = False, average: str = "cosine", eps: float = 1e-6
) -> MergeMethod:
    r"""Model Stock: between the base and the mean, as far as the angles say.

    :math:`b + t \bar τ` with :math:`t = \frac{N \cos θ}{1 + (N-1) \cos θ}`, θ
    between task vectors.

    Source: Jang et al., 2024 (arXiv 2403.19522), §4, eq. 6; the mean of pairwise
    cosines for more than two models as mergekit's `model_stock`.

    Args:
        filter_wise: an angle per vector along the last axis instead of per leaf.
        average: "cosine" averages pairwise cosines (mergekit), "angle" the angles
            (FusionBench).
        eps: least product of two norms, below which vectors count as orthogonal.

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 2.0}, {"w": 4.0}
        >>> merging.merge([a, b], merging.model_stock(), base={"w": 0.0})["w"].item()
        3.0
    """
    ratio = stock_ratio(average, -1 if filter_wise else None, eps)
    return chain(task_vectors(), ratio, add_base())
