"""Means on the sphere of more than two models: multi-SLERP and the Karcher mean."""

import jax
import jax.numpy as jnp
from jax import lax

from vcjax.merging.compose import chain
from vcjax.merging.kernels import gram as g
from vcjax.merging.kernels.linalg import safe_divide
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Products, Share, Totals
from vcjax.merging.steps.basic import add_base, merged, task_vectors
from vcjax.merging.steps.combination import by_gram


@transform()
def spherical_mean(
    iterations: int = 0,
    tol: Coefficient = 1e-5,
    normalize: bool = True,
    eps: Coefficient = 0.0,
) -> Transform:
    """The mean direction times the mean norm; `iterations` steps towards the Karcher mean."""

    def coefficients(products: Products, weights: Share) -> Share:
        return spherical_coefficients(products, weights, iterations, tol, normalize, eps)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        shares = coefficients(g.gram(stack.values), stack.weights)
        return merged(stack, g.combine(shares, stack.values))

    return Transform(apply, weighted=True, slices=lambda dtype: by_gram(coefficients))


def spherical_coefficients(
    products: Products,
    weights: Share,
    iterations: int,
    tol: Coefficient,
    normalize: bool,
    eps: Coefficient,
) -> Share:
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


def karcher_mean(cosines: Products, weights: Share, iterations: int, tol: Coefficient) -> Share:
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
