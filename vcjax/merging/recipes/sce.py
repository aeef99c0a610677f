"""SCE: select by variance, calculate weights by energy, erase minority signs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vcjax.merging.compose import chain
from vcjax.merging.kernels import gram as g
from vcjax.merging.kernels.linalg import safe_divide, total
from vcjax.merging.kernels.top_k import keep_mask, kth_largest, magnitude_keys
from vcjax.merging.makers import checked, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Mask, Share, Totals, Value
from vcjax.merging.steps.basic import add_base, merged, scale_by, task_vectors
from vcjax.merging.steps.sliced import Measure, Sliced


def variance_mask(values: tuple[Value, ...], share: Coefficient) -> Mask:
    """Where the variance over models is among the top share of the non-zero variances."""
    mean = total(values) / len(values)
    variance = total(jnp.square(x - mean) for x in values) / len(values)
    keys = magnitude_keys(variance)
    varying = jnp.sum(keys > 0, dtype=jnp.int32)
    # Up to 2^24 positions this is exact; beyond, to 1e-7 of them.
    wanted = jnp.floor(jnp.asarray(share, jnp.float32) * varying * (1 + 3e-7))
    k = jnp.clip(wanted.astype(jnp.int32), 0, varying)
    mask = keep_mask(keys, kth_largest(keys, jnp.maximum(k, 1)), k) & (k > 0)
    return mask | jnp.isnan(variance)


@transform("select_topk", "least")
def select_calculate_erase(select_topk: Coefficient = 1.0, least: float = 1e-6) -> Transform:
    """SCE's three steps on task vectors; see `sce`."""
    checked("select_topk", select_topk, 0, 1)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        values = stack.values
        if not (isinstance(select_topk, (int, float)) and select_topk >= 1):
            mask = variance_mask(values, select_topk)
            values = tuple(jnp.where(mask, x, 0) for x in values)
        energy = jnp.stack([jnp.mean(jnp.square(x)) for x in values])
        return merged(stack, erase_minority(values, energy_weights(energy, least)))

    return Transform(apply, slices=functools.partial(_slices, select_topk, least))


def energy_weights(energy: Share, least: float) -> Share:
    """SCE's weights: each task vector's share of the energy; equal if that is below `least`."""
    whole = jnp.sum(energy)
    tiny = whole < least
    return jnp.where(tiny, 1 / energy.size, energy / jnp.where(tiny, 1, whole))


def erase_minority(values: tuple[Value, ...], weights: Share) -> Value:
    """The weighted mean, element by element, of the values that have the sign of their sum."""
    positive = total(values) >= 0
    agree = [jnp.where(positive, x > 0, x < 0) | jnp.isnan(x) for x in values]
    share = [jnp.where(m, w, 0) for m, w in zip(agree, weights, strict=True)]
    mixed = total(w * x for w, x in zip(share, values, strict=True))
    return safe_divide(mixed, total(share))


class Size(NamedTuple):
    """How many elements the leaf has."""

    n: Any


def _slices(select_topk: Coefficient, least: float, dtype: np.dtype) -> Sliced | None:
    if not isinstance(select_topk, (int, float)) or select_topk < 1:
        return None

    def take(stack: Stack, facts: Size, state: PyTree) -> jax.Array:
        return jnp.stack([g.inner(x, x) for x in stack.values])

    def conclude(facts: Size, state: PyTree, sums: Share) -> Share:
        return energy_weights(sums / facts.n, least)

    def apply(stack: Stack, facts: Size, state: PyTree, carry: PyTree) -> tuple[Stack, Any]:
        return merged(stack, erase_minority(stack.values, state)), carry

    return Sliced(apply, (Measure(take, conclude),), lambda size: Size(np.float32(size)))


@recipe
def sce(
    select_topk: Coefficient = 1.0, scale: Coefficient = 1.0, least: float = 1e-6
) -> MergeMethod:
    r"""SCE: select by variance, calculate weights from energy, erase minority signs.

    Selects the positions with the largest variance over models, weighs each task
    vector by :math:`\mathrm{mean}(τ_i^2)`, leaves out values whose sign is not that
    of the sum, and takes the weighted mean of the rest.

    Source: Wan et al., 2024 (FuseChat, arXiv 2408.07990), §3.3; mergekit `sce`.

    Args:
        select_topk: share of the positions of non-zero variance that is selected.
        scale: λ.
        least: summed energy below which all models weigh the same (mergekit's
            1e-6, which catches task vectors of a size of 1e-3; 0 for the paper).

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 3.0}, {"w": -1.0}
        >>> merging.merge([a, b], merging.sce(), base={"w": 0.0})["w"].item()
        3.0
    """
    return chain(
        task_vectors(), select_calculate_erase(select_topk, least), scale_by(scale), add_base()
    )
