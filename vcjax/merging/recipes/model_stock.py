"""Model Stock: how far to go from the base to the mean, from the angles between models."""

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.merging.compose import chain
from vcjax.merging.kernels import gram as g
from vcjax.merging.kernels.linalg import safe_divide
from vcjax.merging.makers import chosen, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Products, Share, Totals
from vcjax.merging.steps.basic import add_base, merged, task_vectors
from vcjax.merging.steps.combination import by_gram
from vcjax.merging.steps.sliced import Sliced


@transform("eps")
def stock_ratio(average: str = "cosine", axis: int | None = None, eps: float = 1e-6) -> Transform:
    """The mean task vector times Model Stock's ratio t."""
    chosen("average", average, "cosine", "angle")

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        n = len(stack.values)
        products = g.gram(stack.values, axis if stack.values[0].ndim else None)
        mean = sum(stack.values[1:], stack.values[0]) / n
        return merged(stack, stock_share(products, average, eps) * mean)

    def coefficients(products: Products, weights: Share) -> Share:
        models = products.shape[0]
        return jnp.broadcast_to(stock_share(products, average, eps) / models, (models,))

    def slices(dtype: np.dtype) -> Sliced | None:
        return by_gram(coefficients) if axis is None else None

    return Transform(apply, models=(2, None), slices=slices)


def stock_share(products: Products, average: str, eps: float) -> jax.Array:
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
