"""Iso-C and Iso-CTS: task matrices with a flat spectrum."""

import jax.numpy as jnp

from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import matmul, polar, total, transpose
from vcjax.merging.makers import checked, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.recipes.tsv import triples
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, scale_by, task_vectors
from vcjax.merging.steps.matrix import matrices, mean_vector, restored


@transform()
def isotropic_sum() -> Transform:
    """The sum of task matrices with all singular values replaced by their mean."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.view is None:
            return mean_vector(stack)
        summed = total(matrices(stack))
        factor = polar(summed)
        # <U V', U S V'> is the sum of the singular values.
        mean = jnp.sum(factor * summed, axis=(-2, -1), keepdims=True) / min(summed.shape[-2:])
        return restored(stack, mean * factor)

    return Transform(apply, weighted=True)


@recipe
def iso_c(scale: Coefficient = 1.0) -> MergeMethod:
    r"""Iso-C: the summed task matrix with a flat spectrum, :math:`b + λ \barσ UV^T`.

    Directions that no task has (singular value 0) stay 0, where an SVD would fill
    them at random. Leaves that are no matrices get the mean task vector.

    Source: Marczak et al., 2025 (arXiv 2502.04959), §4.1.

    Args:
        scale: λ.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, zero = {"w": jnp.diag(jnp.array([1.0, 3.0]))}, {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a], merging.iso_c(), base=zero)["w"].round(4).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return chain(task_vectors(), isotropic_sum(), scale_by(scale), add_base())


@transform("common")
def isotropic_common_and_task(common: float = 0.8) -> Transform:
    """Iso-CTS of task matrices; see `iso_cts`."""
    checked("common", common, 0, 1)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.view is None:
            return mean_vector(stack)
        tasks = matrices(stack)
        rank = min(tasks[0].shape[-2:])
        each = round((rank - int(rank * common)) / len(tasks))
        shared = rank - each * len(tasks)
        u, s, v = triples(total(tasks), shared)
        us, ss, vs = [u], [s], [v]
        for task in tasks:
            rest = task - matmul(u, matmul(transpose(u), task))
            for parts, part in zip((us, ss, vs), triples(rest, each), strict=True):
                parts.append(part)
        left = polar(jnp.concatenate(us, axis=-1))
        right = polar(jnp.concatenate(vs, axis=-2))
        mean = jnp.mean(jnp.concatenate(ss, axis=-1), axis=-1)[..., None, None]
        return restored(stack, mean * matmul(left, right))

    return Transform(apply, weighted=True)


@recipe
def iso_cts(scale: Coefficient = 1.0, common: float = 0.8) -> MergeMethod:
    r"""Iso-CTS: a common subspace and task-specific directions, with a flat spectrum.

    The leading directions of the summed task matrix, and of each task matrix
    outside them equally many leading directions, are made orthogonal (polar
    factors) and all given the mean of their singular values.

    Source: Marczak et al., 2025 (arXiv 2502.04959), §4.2, Algorithm 2; numbers of
    directions as the official code.

    Args:
        scale: λ.
        common: share of the directions that are common.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, zero = {"w": jnp.diag(jnp.array([1.0, 3.0]))}, {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a], merging.iso_cts(), base=zero)["w"].round(4).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return chain(task_vectors(), isotropic_common_and_task(common), scale_by(scale), add_base())
