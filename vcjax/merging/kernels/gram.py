"""Geometry of N models in the basis of the models themselves.

Every geodesic method ends in :math:`\\sum c_i x_i` with coefficients that depend
on the models only through their N×N inner products (the Gram matrix). So a leaf
is read twice, once for the Gram matrix and once for the sum, however many
iterations the method makes; those run on N numbers.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact

from vcjax.merging.kernels.linalg import safe_divide
from vcjax.merging.shapes import Coefficient, Products, Share, Value


def inner(a: Value, b: Value, axis: int | None = None) -> Inexact[Array, "..."]:
    """Inner product over the whole leaf, or along one axis (which is kept, of size 1)."""
    if axis is not None:
        return jnp.sum(a * b, axis=axis, keepdims=True)
    axes = tuple(range(a.ndim))
    # A dot sums in blocks; a plain sum in float32 loses digits on tens of millions.
    return lax.dot_general(a, b, ((axes, axes), ((), ())), precision=lax.Precision.HIGHEST)


def gram(values: tuple[Value, ...], axis: int | None = None) -> Inexact[Array, "models models ..."]:
    """Inner products `[N, N, …]` of N arrays; `…` is there if `axis` is given."""
    n = len(values)
    upper = {(i, j): inner(values[i], values[j], axis) for i in range(n) for j in range(i, n)}
    rows = [jnp.stack([upper[min(i, j), max(i, j)] for j in range(n)]) for i in range(n)]
    return jnp.stack(rows)


def norms(products: Inexact[Array, "models models ..."]) -> Inexact[Array, "models ..."]:
    """Norms `[N, …]` from a Gram matrix; gradients stay finite at zero."""
    squares = jnp.stack([products[i, i] for i in range(products.shape[0])])
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def combine(coefficients: Inexact[Array, "models ..."], values: tuple[Value, ...]) -> Value:
    """:math:`\\sum c_i x_i`, coefficients `[N, …]`."""
    total = coefficients[0] * values[0]
    for c, x in zip(coefficients[1:], values[1:], strict=True):
        total = total + c * x
    return total


def angle(cosine: Inexact[Array, "..."]) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."]]:
    """(θ, sin θ) in [0, π] of a cosine; exactly 0 and finite in gradient at ±1."""
    inside = jnp.abs(cosine) < 1
    c = jnp.where(inside, cosine, 0)
    sine = jnp.sqrt((1 - c) * (1 + c))
    ends = jnp.where(cosine > 0, 0, jnp.pi).astype(cosine.dtype)
    theta = jnp.where(inside, jnp.arctan2(sine, c), ends)
    # NaN is neither inside nor at an end: it stays.
    bad = jnp.isnan(cosine)
    return jnp.where(bad, cosine, theta), jnp.where(bad, cosine, jnp.where(inside, sine, 0))


def slerp_coefficients(
    t: Inexact[Array, "..."], cosine: Inexact[Array, "..."], straight: Bool[Array, "..."]
) -> Inexact[Array, "2 ..."]:
    """Coefficients `[2, …]` of a point on the arc; of the chord where `straight`."""
    theta, sine = angle(cosine)
    straight = straight | (sine == 0)
    theta = jnp.where(straight, 1, theta)
    sine = jnp.where(straight, 1, sine)
    first = jnp.where(straight, 1 - t, jnp.sin((1 - t) * theta) / sine)
    second = jnp.where(straight, t, jnp.sin(t * theta) / sine)
    return jnp.stack([first, second])


def unit_gram(products: Products, lengths: Share) -> Products:
    """Cosines `[N, N]` of a Gram matrix; 0 for zero vectors."""
    return safe_divide(products, lengths[:, None] * lengths[None, :])


def log_step(
    cosines: Products, weights: Share, mean: Share, tol: Coefficient
) -> tuple[Share, Float[Array, ""]]:
    """The mean tangent :math:`\\sum w_i \\log_m u_i` and its length.

    Args:
        cosines: Gram matrix of unit vectors.
        weights: `[N]`, of sum 1.
        mean: coefficients `[N]` of the point m of unit length.
        tol: smallest angle that counts.
    """
    dots = jnp.clip(cosines @ mean, -1, 1)
    theta, sine = angle(dots)
    moves = (theta >= tol) & (sine > 0)
    pull = weights * jnp.where(moves, theta, 0) / jnp.where(moves, sine, 1)
    tangent = pull - jnp.sum(pull * dots) * mean
    return tangent, length(cosines, tangent)


def length(cosines: Products, coefficients: Share) -> Float[Array, ""]:
    """Length of :math:`\\sum c_i u_i`; gradients stay finite at zero."""
    square = coefficients @ cosines @ coefficients
    positive = square > 0
    root = jnp.sqrt(jnp.where(positive, square, 1))
    return jnp.where(positive, root, jnp.where(jnp.isnan(square), square, 0))


def exp_step(mean: Share, tangent: Share, size: Float[Array, ""]) -> Share:
    """Coefficients of :math:`\\exp_m` of a tangent of this length."""
    return jnp.cos(size) * mean + jnp.sinc(size / jnp.pi) * tangent
