"""Fisher merging: the mean weighted by diagonal Fisher information."""

import jax.numpy as jnp

from vcjax import errors
from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import total
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import merged
from vcjax.merging.steps.matrix import weighted_mean


@transform()
def fisher_mean(floor: Coefficient = 0.0) -> Transform:
    """The mean weighted by diagonal Fisher information; see `fisher`."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        mean = weighted_mean(stack)
        if stack.statistics is None:
            return merged(stack, mean)
        kind = mean.dtype
        for number in stack.statistics:
            if number.shape != mean.shape:
                raise errors.MergeError(
                    f"Fisher information of shape {list(number.shape)} "
                    f"for a leaf of shape {list(mean.shape)}",
                    hint="give the diagonal: one number per parameter",
                )
        precision = [
            w * jnp.maximum(f.astype(kind), floor)
            for w, f in zip(stack.weights, stack.statistics, strict=True)
        ]
        whole = total(precision)
        informed = whole > 0
        # Differences from the mean, so that equal models give the model to the last bit.
        shift = total(p * (x - mean) for p, x in zip(precision, stack.values, strict=True))
        return merged(stack, mean + jnp.where(informed, shift / jnp.where(informed, whole, 1), 0))

    return Transform(apply, locality="element", statistics="fisher", weighted=True)


@recipe
def fisher(floor: Coefficient = 0.0) -> MergeMethod:
    r"""Fisher-weighted averaging: :math:`\sum w_i F_i x_i / \sum w_i F_i`.

    Where all F are 0 the result is the mean, and leaves without statistics are
    averaged. Needs `statistics=`: per model a tree (or `{leaf path: array}`) of the
    mean of squared per-example gradients of the log likelihood (not the square of
    the batch gradient).

    Source: Matena and Raffel, 2022 (arXiv 2111.09832), eq. 4.

    Args:
        floor: smallest F; the official code has 1e-6, which only makes sense for F
            of a known scale.

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 0.0}, {"w": 4.0}
        >>> merging.merge([a, b], merging.fisher(), statistics=[{"w": 3.0}, {"w": 1.0}])["w"].item()
        1.0
    """
    return chain(fisher_mean(floor))
