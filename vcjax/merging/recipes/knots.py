"""KnOTS: task matrices aligned in a basis that they share."""

from dataclasses import replace

import jax.numpy as jnp

from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import matmul
from vcjax.merging.makers import checked, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, merged, scale_by, task_vectors
from vcjax.merging.steps.matrix import restored
from vcjax.merging.steps.reductions import disjoint_mean, elect_sign, weighted_sum
from vcjax.merging.steps.trim import trim


@transform("density", "cut")
def in_shared_space(
    density: Coefficient = 1.0, elect: bool = True, normalize: bool = True, cut: float = 1e-5
) -> Transform:
    """Merges task matrices by their parts of one joint SVD; see `knots`."""
    checked("density", density, 0, 1)
    steps: list[Transform] = [trim(density)]
    steps += [elect_sign(), disjoint_mean(normalize)] if elect else [weighted_sum(normalize)]

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.view is None:
            inner = stack
            for step in steps:
                inner = step.apply(inner, ())
            return merged(stack, inner.values[0])
        tasks = [stack.view.matrices(x) for x in stack.values]
        u, s, v = jnp.linalg.svd(jnp.concatenate(tasks, axis=-2), full_matrices=False)
        live = s > cut * s[..., :1]
        blocks = jnp.split(jnp.where(live[..., None, :], u, 0), len(tasks), axis=-2)
        inner = replace(stack, values=tuple(blocks))
        for step in steps:
            inner = step.apply(inner, ())
        spectrum = jnp.where(live, s, 0)[..., None, :]
        return restored(stack, matmul(inner.values[0] * spectrum, v))

    return Transform(apply, weighted=True)


@recipe
def knots(
    density: Coefficient = 0.2,
    scale: Coefficient = 1.0,
    elect: bool = True,
    normalize: bool = True,
    cut: float = 1e-5,
) -> MergeMethod:
    r"""KnOTS: align task matrices by a joint SVD, then merge as TIES (or on average).

    The task matrices `[in, out]`, one below the other, are
    :math:`[V_1; …; V_N] Σ U^T`; the blocks :math:`V_i` are merged, and the result is
    multiplied back. Made for LoRA updates, whose entries do not line up. Leaves
    that are no matrices are merged as they are.

    Source: Stoica et al., 2025 (arXiv 2410.19735), §4.

    Args:
        density: fraction of each block that is kept.
        scale: λ.
        elect: elect signs (KnOTS-TIES); False: weighted mean of the blocks.
        normalize: divide by the weights (that agree).
        cut: singular values below this share of the largest are left out.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, zero = {"w": jnp.diag(jnp.array([1.0, 3.0]))}, {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a, a], merging.knots(1.0), base=zero)["w"].round(4).tolist()
        [[1.0, 0.0], [0.0, 3.0]]
    """
    inner = in_shared_space(density, elect, normalize, cut)
    return chain(task_vectors(), inner, scale_by(scale), add_base())
