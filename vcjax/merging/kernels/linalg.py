"""Linear algebra that methods share: SPD solves, conjugate gradients, polar factors."""

import functools
import operator
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact, Num

from vcjax.merging.shapes import Coefficient, Place, Value

HIGHEST = lax.Precision.HIGHEST


def matmul(
    a: Inexact[Array, "*layers rows inner"], b: Inexact[Array, "*layers inner columns"]
) -> Inexact[Array, "*layers rows columns"]:
    """Matrix product in full float32, also where the default is TF32 or bfloat16."""
    return jnp.matmul(a, b, precision=HIGHEST)


def transpose(a: Inexact[Array, "*layers rows columns"]) -> Inexact[Array, "*layers columns rows"]:
    """The last two axes swapped."""
    return jnp.swapaxes(a, -1, -2)


def solve_towards(
    a: Float[Array, "*layers n n"],
    b: Float[Array, "*layers n columns"],
    start: Float[Array, "*layers n columns"],
    damping: float = 1e-4,
    sweeps: int = 3,
) -> Float[Array, "*layers n columns"]:
    """`x` with `a x = b`, a semi-definite `[…, n, n]`, near `start` where `a` says nothing.

    Iterated Tikhonov regularisation: after scaling to a unit diagonal, `damping` is
    added to it, and each sweep solves for the residual of the last by Cholesky.
    Little damping alone would divide the rounding errors of float32 by it in
    directions that `a` does not have; sweeps allow for more of it without the bias.
    Nearness is measured in the scale of the diagonal. Where rounding makes the
    factorisation fail, conjugate gradient steps from `start` are taken instead.
    """
    diagonal = jnp.diagonal(a, axis1=-2, axis2=-1)
    scale = lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    scaled = a * scale[..., :, None] * scale[..., None, :]
    factor = jnp.linalg.cholesky(scaled + damping * jnp.eye(a.shape[-1], dtype=a.dtype))
    right = (b - matmul(a, start)) * scale[..., None]
    step = jnp.zeros_like(right)
    for _ in range(sweeps):
        rest = right - matmul(scaled, step)
        half = lax.linalg.triangular_solve(factor, rest, left_side=True, lower=True)
        step = step + lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )
    direct = start + step * scale[..., None]
    # A NaN of the inputs is no failure: it must stay.
    failed = ~jnp.isfinite(factor).all() & jnp.isfinite(a).all()
    return lax.cond(
        failed, lambda: conjugate_gradients(lambda x: matmul(a, x), b, start, 100), lambda: direct
    )


def conjugate_gradients(
    multiply: Callable[[Value], Value],
    b: Value,
    start: Value,
    iterations: int,
    rtol: Coefficient = 1e-5,
) -> Value:
    """At most so many conjugate gradient steps for `multiply(x) = b`.

    One inner product over the whole leaf, and a stop when the residual is below
    `rtol` of `b`, as `scipy.sparse.linalg.cg` has it.
    """
    limit = rtol**2 * jnp.sum(b * b)

    def step(_: Place, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, residual, direction, square = state
        image = multiply(direction)
        curvature = jnp.sum(direction * image)
        go = (square > limit) & (curvature > 0)
        length = jnp.where(go, square, 0) / jnp.where(go, curvature, 1)
        x = x + length * direction
        after = residual - length * image
        new = jnp.where(go, jnp.sum(after * after), square)
        turned = after + new / jnp.where(go, square, 1) * direction
        return x, after, jnp.where(go, turned, direction), new

    residual = b - multiply(start)
    state = (start, residual, residual, jnp.sum(residual * residual))
    return lax.fori_loop(0, iterations, step, state)[0]


def polar(
    x: Float[Array, "*layers rows columns"], iterations: int = 40
) -> Float[Array, "*layers rows columns"]:
    r"""The orthogonal polar factor :math:`UV^T` of :math:`x = UΣV^T`, `[…, m, n]`.

    Newton-Schulz iteration (Higham, 2008, §8.3): matrix products only. Singular
    values below about 1e-6 of the largest stay below 1, so what `x` says nothing
    of stays zero, where an SVD would choose a direction at random.
    """
    tall = x.shape[-2] >= x.shape[-1]
    y = x if tall else transpose(x)
    # The 1-norm times the infinity-norm bounds the square of the spectral norm.
    rows, columns = (jnp.max(jnp.sum(jnp.abs(y), axis=axis), axis=-1) for axis in (-1, -2))
    # The factor does not depend on the scale, so no gradient flows through it.
    bound = lax.stop_gradient(jnp.sqrt(rows * columns))[..., None, None]
    y = y / jnp.where(bound > 0, bound, 1)

    def step(_: Place, y: jax.Array) -> jax.Array:
        return 1.5 * y - 0.5 * matmul(y, matmul(transpose(y), y))

    y = lax.fori_loop(0, iterations, step, y)
    return y if tall else transpose(y)


def total(values: Iterable[Num[Array, "..."]]) -> Num[Array, "..."]:
    """The sum of some arrays."""
    return functools.reduce(operator.add, values)


def safe_divide(
    numerator: Inexact[Array, "..."], denominator: Inexact[Array, "..."]
) -> Inexact[Array, "..."]:
    """The quotient, and the numerator where the denominator is 0; gradients stay finite."""
    one = jnp.ones((), denominator.dtype)
    return numerator / jnp.where(denominator == 0, one, denominator)
