"""EMR-Merging: elect a unified model, and keep a mask and a rescaler for each task."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact

from vcjax.merging.compose import chain
from vcjax.merging.inputs import Tree
from vcjax.merging.kernels.linalg import safe_divide, total
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, merged, scale_by, task_vectors


@transform()
def elect_largest() -> Transform:
    """The elected sign with the largest magnitude among the values that have it."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        values = [w * x for w, x in zip(stack.weights, stack.values, strict=True)]
        summed = total(values)
        sign = jnp.where(jnp.isnan(summed), summed, jnp.sign(summed))
        largest = jnp.zeros_like(summed)
        for x in values:
            largest = jnp.maximum(largest, jnp.where(x * sign > 0, jnp.abs(x), 0))
        return merged(stack, sign * largest)

    return Transform(apply, locality="element", weighted=True)


@recipe
def emr(scale: Coefficient = 1.0) -> MergeMethod:
    r"""EMR-Merging's unified model: elected signs with the largest agreeing magnitudes.

    :math:`γ = \operatorname{sign} \sum τ_i`, magnitude
    :math:`\max_i |τ_i|` over the τ that agree. `emr_task` rebuilds a model
    from it by a mask and a scalar.

    Source: Huang et al., 2024 (arXiv 2405.17461), §3.2.

    Args:
        scale: of the unified task vector.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": 0.0}, {"w": 3.0}, {"w": -1.0}
        >>> merging.merge([a, b], merging.emr(), base=base)["w"].item()
        3.0
    """
    return chain(task_vectors(), elect_largest(), scale_by(scale), add_base())


def emr_task(unified: Tree, model: Tree, base: Tree) -> tuple[Tree, Float[Array, ""]]:
    r"""The mask and the scalar by which EMR's unified model stands for one model.

    The model is rebuilt as :math:`b + λ_i M_i ⊙ τ_{uni}` with
    :math:`M_i = [τ_i τ_{uni} > 0]` and
    :math:`λ_i = \sum |τ_i| / \sum |M_i τ_{uni}|` over the whole model.

    Args:
        unified: what `merge` with `emr()` gave.
        model: one of the merged models.
        base: the base model.

    Returns:
        A tree of boolean masks, and the scalar.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": [0.0, 0.0]}, {"w": [3.0, 1.0]}, {"w": [1.0, -2.0]}
        >>> unified = merging.merge([a, b], merging.emr(), base=base)
        >>> mask, factor = merging.emr_task(unified, a, base)
        >>> [x.item() for x in mask["w"]], round(factor.item(), 4)
        ([True, False], 1.3333)
    """

    def delta(x: ArrayLike, b: ArrayLike) -> Inexact[Array, "..."]:
        return jnp.asarray(x, jnp.float32) - jnp.asarray(b, jnp.float32)

    common, own = (jax.tree.map(delta, tree, base) for tree in (unified, model))
    masks = jax.tree.map(lambda c, o: c * o > 0, common, own)
    size = total(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(own))
    kept = jax.tree.map(lambda m, c: jnp.sum(jnp.where(m, jnp.abs(c), 0)), masks, common)
    return masks, safe_divide(size, total(jax.tree.leaves(kept)))
