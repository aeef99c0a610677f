"""TSV-Merge: the leading singular vectors of every task matrix, made orthogonal to each other."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import (
    matmul,
    polar,
)
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, scale_by, task_vectors
from vcjax.merging.steps.matrix import matrices, mean_vector, restored


def triples(
    x: Float[Array, "*layers rows columns"], rank: int
) -> tuple[
    Float[Array, "*layers rows rank"],
    Float[Array, "*layers rank"],
    Float[Array, "*layers rank columns"],
]:
    """The `rank` leading singular triples `[…, m, k], […, k], […, k, n]`."""
    u, s, v = jnp.linalg.svd(x, full_matrices=False)
    return u[..., :rank], s[..., :rank], v[..., :rank, :]


@transform()
def decorrelated_sum() -> Transform:
    """TSV-Merge of task matrices; see `tsv`."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.view is None:
            return mean_vector(stack)
        tasks = matrices(stack)
        rank = min(tasks[0].shape[-2:])
        parts = [triples(x, max(rank // len(tasks), 1)) for x in tasks]
        u = polar(jnp.concatenate([u for u, _, _ in parts], axis=-1))
        s = jnp.concatenate([s for _, s, _ in parts], axis=-1)
        v = polar(jnp.concatenate([v for _, _, v in parts], axis=-2))
        return restored(stack, matmul(u * s[..., None, :], v))

    return Transform(apply, weighted=True)


@recipe
def tsv(scale: Coefficient = 1.0) -> MergeMethod:
    r"""TSV-Merge: the top singular vectors of each task, made orthogonal to each other.

    The r/N leading triples of each task matrix are concatenated, both sides
    replaced by their orthogonal polar factors, and multiplied out:
    :math:`b + λ U_⊥ Σ V_⊥^T`. Leaves that are no matrices get the mean task vector.

    Source: Gargiulo et al., 2025 (arXiv 2412.00081), Algorithm 1.

    Args:
        scale: λ.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, b = {"w": jnp.diag(jnp.array([2.0, 0.0]))}, {"w": jnp.diag(jnp.array([0.0, 3.0]))}
        >>> zero = {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a, b], merging.tsv(), base=zero)["w"].round(4).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    return chain(task_vectors(), decorrelated_sum(), scale_by(scale), add_base())
