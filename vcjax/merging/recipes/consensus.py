"""Consensus merging: what matters to enough of the tasks is kept."""

import jax.numpy as jnp

from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import total
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, keep_where, merged, scale_by, task_vectors


@transform()
def consensus_mask(threshold: Coefficient = 0.4, agree: int = 2) -> Transform:
    """The multi-task vector where enough tasks' TALL masks meet; see `consensus`."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        values = [w * x for w, x in zip(stack.weights, stack.values, strict=True)]
        whole = total(values)
        used = [jnp.abs(x) > threshold * jnp.abs(whole - x) for x in values]
        enough = total(m.astype(jnp.int32) for m in used) >= agree
        return merged(stack, keep_where(enough, whole))

    return Transform(apply, locality="element", weighted=True)


@recipe
def consensus(
    scale: Coefficient = 1.0, threshold: Coefficient = 0.4, agree: int = 2
) -> MergeMethod:
    r"""Consensus merging: the multi-task vector where TALL masks of several tasks meet.

    :math:`m_i = |τ_i| > λ_i |τ_{MT} - τ_i|` with :math:`τ_{MT} = \sum w_i τ_i`; what
    fewer than `agree` tasks use (selfish and catastrophic weights) is left at the
    base.

    Source: Wang et al., 2024 (arXiv 2405.07813), §4; with one threshold for all
    tasks where the paper tunes each on validation data between .2 and .6.

    Args:
        scale: of the multi-task vector.
        threshold: λ of the masks.
        agree: least number of tasks.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": [0.0, 0.0]}, {"w": [1.0, 1.0]}, {"w": [1.0, 0.0]}
        >>> [x.item() for x in merging.merge([a, b], merging.consensus(), base=base)["w"]]
        [2.0, 0.0]
    """
    return chain(task_vectors(), consensus_mask(threshold, agree), scale_by(scale), add_base())
