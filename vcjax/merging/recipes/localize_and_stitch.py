"""Localize-and-Stitch: sparse regions of each task, stitched into the base."""

import jax.numpy as jnp

from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import safe_divide, total
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.recipes.ties import trim_model
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, merged, scale_by, task_vectors


@transform()
def stitch() -> Transform:
    r"""The mean over the models whose mask covers an element, :math:`\sum mτ / \sum m`."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        weighted = list(zip(stack.weights, stack.values, strict=True))
        covered = total(jnp.where(x != 0, w, 0) for w, x in weighted)
        return merged(stack, safe_divide(total(w * x for w, x in weighted), covered))

    return Transform(apply, locality="element", weighted=True)


@recipe
def localize_and_stitch(density: Coefficient = 0.05, scale: Coefficient = 1.0) -> MergeMethod:
    r"""Localize-and-Stitch: the largest changes of each whole model, averaged where they meet.

    :math:`b + λ \sum m_i τ_i / \sum m_i`, masks by magnitude over the whole model
    (the data-free form; the paper also trains masks).

    Source: He et al., 2024 (arXiv 2408.13656), §3.

    Args:
        density: fraction of each model that its mask covers (.05 text, .1 vision).
        scale: λ.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": [0.0, 0.0]}, {"w": [4.0, 1.0]}, {"w": [2.0, 1.0]}
        >>> method = merging.localize_and_stitch(density=0.5)
        >>> [x.item() for x in merging.merge([a, b], method, base=base)["w"]]
        [3.0, 0.0]
    """
    return chain(task_vectors(), trim_model(density), stitch(), scale_by(scale), add_base())
