"""RegMean and MaTS: least squares over Gram matrices of layer inputs."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from vcjax import errors
from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import conjugate_gradients, matmul, solve_towards, total
from vcjax.merging.makers import checked, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import merged
from vcjax.merging.steps.matrix import weighted_mean


def gram_system(stack: Stack, shrink: Coefficient) -> tuple[jax.Array, jax.Array, jax.Array]:
    r""":math:`\sum w_i Ĝ_i`, :math:`\sum w_i Ĝ_i W_i` and the mean, all `[layer, in, out]`."""
    view = stack.view
    assert view is not None
    assert stack.statistics is not None
    inputs = [view.matrices(x) for x in stack.values]
    layers, n, _ = inputs[0].shape
    grams = []
    for number in stack.statistics:
        if number.shape not in ((n, n), (layers, n, n)):
            raise errors.MergeError(
                f"a Gram matrix of shape {list(number.shape)} for {n} inputs",
                hint=f"give [{n}, {n}], inputs in the order of the leaf's input axes",
            )
        square = number.astype(inputs[0].dtype).reshape(-1, n, n)
        grams.append(square * jnp.where(jnp.eye(n, dtype=bool), 1, shrink).astype(square.dtype))
    left = total(w * g for w, g in zip(stack.weights, grams, strict=True))
    right = total(w * matmul(g, x) for w, g, x in zip(stack.weights, grams, inputs, strict=True))
    mean = view.matrices(weighted_mean(stack))
    return jnp.broadcast_to(left, (layers, n, n)), right, mean


@transform("damping")
def gram_mean(shrink: Coefficient = 0.9, damping: float = 1e-4) -> Transform:
    """The mean weighted by Gram matrices, solved directly; see `regmean`."""
    checked("shrink", shrink, 0, 1)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.statistics is None or stack.view is None:
            return merged(stack, weighted_mean(stack))
        left, right, mean = gram_system(stack, shrink)
        solved = solve_towards(left, right, mean, damping)
        return merged(stack, stack.view.restore(solved, stack.values[0].shape))

    return Transform(apply, statistics="gram", weighted=True)


@recipe
def regmean(shrink: Coefficient = 0.9, damping: float = 1e-4) -> MergeMethod:
    r"""RegMean: the linear layer that best agrees with all models on their own inputs.

    :math:`W = (\sum w_i Ĝ_i)^{-1} \sum w_i Ĝ_i W_i`, W as `[in, out]`, :math:`Ĝ_i`
    the Gram matrix :math:`X_i^T X_i` with its off-diagonals times `shrink`.

    Needs `statistics=`: per model `{leaf path: [in, in]}` (`[layer, in, in]` for
    stacked layers). Leaves without a Gram matrix are averaged, and so are
    directions in which no model has inputs.

    Source: Jin et al., 2023 (arXiv 2212.09849), §3.2 and eq. 2.

    Args:
        shrink: factor of the off-diagonals (.9; .1 for small models).
        damping: added to the unit diagonal of the scaled system, towards the mean.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, b = {"w": jnp.zeros((2, 1))}, {"w": jnp.ones((2, 1))}
        >>> grams = [{"w": jnp.diag(jnp.array([3.0, 1.0]))}, {"w": jnp.eye(2)}]
        >>> out = merging.merge([a, b], merging.regmean(), statistics=grams)
        >>> out["w"].round(4).ravel().tolist()
        [0.25, 0.5]
    """
    return chain(gram_mean(shrink, damping))


@transform("rtol")
def gram_iterations(
    iterations: int = 10, shrink: Coefficient = 1.0, rtol: float = 1e-5, start: str = "mean"
) -> Transform:
    """The mean weighted by Gram matrices, by conjugate gradients; see `mats`."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.statistics is None or stack.view is None:
            return merged(stack, weighted_mean(stack))
        left, right, mean = gram_system(stack, shrink)
        first = mean
        if start == "base":
            if stack.base is None:
                raise errors.MergeError("start='base' needs the base model", hint="give base=")
            first = stack.view.matrices(stack.base)
        solved = conjugate_gradients(lambda x: matmul(left, x), right, first, iterations, rtol)
        return merged(replace(stack), stack.view.restore(solved, stack.values[0].shape))

    return Transform(apply, statistics="gram", weighted=True, needs_base=start == "base")


@recipe
def mats(
    iterations: int = 10, shrink: Coefficient = 1.0, rtol: float = 1e-5, start: str = "mean"
) -> MergeMethod:
    r"""MaTS: RegMean's system, a few conjugate gradient steps from a merged model.

    Solves :math:`\sum w_i G_i W = \sum w_i G_i W_i` from the mean (or the base), and
    stops early, which keeps what the Gram matrices say little of near the start.

    Source: Tam et al., 2024 (arXiv 2312.04339), §3.

    Args:
        iterations: at most so many steps.
        shrink: factor of the off-diagonals of the Gram matrices.
        rtol: stop when the residual is below this share of the right-hand side.
        start: "mean" or "base".

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, b = {"w": jnp.zeros((2, 1))}, {"w": jnp.ones((2, 1))}
        >>> grams = [{"w": jnp.diag(jnp.array([3.0, 1.0]))}, {"w": jnp.eye(2)}]
        >>> out = merging.merge([a, b], merging.mats(), statistics=grams)
        >>> out["w"].round(4).ravel().tolist()
        [0.25, 0.5]
    """
    return chain(gram_iterations(iterations, shrink, rtol, start))
