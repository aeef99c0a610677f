"""Model Breadcrumbs: the smallest and the largest magnitudes are dropped."""

import jax.numpy as jnp

from vcjax.merging.compose import chain
from vcjax.merging.kernels.top_k import TIE_RULES, count, keep_mask, kth_largest, magnitude_keys
from vcjax.merging.makers import checked, chosen, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, keep_where, mapped, scale_by, task_vectors
from vcjax.merging.steps.reductions import disjoint_mean, elect_sign, weighted_sum


@transform("density", "gamma")
def trim_outliers(
    density: Coefficient, gamma: Coefficient = 0.01, tie_rule: str = "exact", rounding: str = "ceil"
) -> Transform:
    r"""Zeroes the :math:`⌊γn⌋` largest magnitudes and keeps the next :math:`⌈density·n⌉`.

    Source: Davari and Belilovsky, 2024 (Model Breadcrumbs), §3; per leaf, and
    fewer outliers removed where density + γ > 1, as mergekit.

    Args:
        density: fraction that is kept.
        gamma: fraction of largest magnitudes that is dropped.
        tie_rule: see `trim`.
        rounding: of the number kept, "ceil" or "floor" (mergekit).
    """
    checked("density", density, 0, 1)
    checked("gamma", gamma, 0, 1)
    chosen("tie_rule", tie_rule, *TIE_RULES)
    chosen("rounding", rounding, "ceil", "floor")

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        size = stack.values[0].size
        kept = jnp.asarray(count(density, size, rounding), jnp.int32)
        top = jnp.minimum(jnp.asarray(count(gamma, size, "floor"), jnp.int32), size - kept)
        out = []
        for x in stack.values:
            keys = magnitude_keys(x)
            largest, wanted = (
                # k = 0 selects nothing, so the first element stands in for a k-th largest.
                keep_mask(keys, kth_largest(keys, jnp.maximum(k, 1)), k, tie_rule) & (k > 0)
                for k in (top, top + kept)
            )
            out.append(keep_where(wanted & ~largest, x))
        return mapped(stack, out)

    return Transform(apply, per_model=True)


@recipe
def breadcrumbs(
    density: Coefficient = 0.9,
    gamma: Coefficient = 0.01,
    scale: Coefficient = 1.0,
    normalize: bool = False,
    tie_rule: str = "exact",
    rounding: str = "ceil",
) -> MergeMethod:
    r"""Model Breadcrumbs: task arithmetic without outliers and small perturbations.

    Source: Davari and Belilovsky, 2024 (arXiv 2312.06795), §3; masks per leaf as
    mergekit's `breadcrumbs` (the official code masks along the last axis).

    Args:
        density: fraction of each task vector that is kept.
        gamma: fraction of largest magnitudes that is dropped.
        scale: λ.
        normalize: divide by the sum of the weights.
        tie_rule: "exact" or ">=", see `trim`.
        rounding: of the number kept, "ceil" or "floor" (mergekit).

    Example:
        >>> from vcjax import merging
        >>> import numpy as np
        >>> base, a = {"w": np.zeros(4)}, {"w": np.array([9.0, 2.0, 3.0, 0.1])}
        >>> method = merging.breadcrumbs(density=0.5, gamma=0.25)
        >>> merging.merge([a], method, base=base, dtype=np.float32)["w"].tolist()
        [0.0, 2.0, 3.0, 0.0]
    """
    return chain(
        task_vectors(),
        trim_outliers(density, gamma, tie_rule, rounding),
        weighted_sum(normalize),
        scale_by(scale),
        add_base(),
    )


@recipe
def breadcrumbs_ties(
    density: Coefficient = 0.9,
    gamma: Coefficient = 0.01,
    scale: Coefficient = 1.0,
    normalize: bool = False,
    tie_rule: str = "exact",
    rounding: str = "ceil",
) -> MergeMethod:
    """Model Breadcrumbs' masks with TIES' sign election.

    Source: mergekit `breadcrumbs_ties`. Arguments as `breadcrumbs`; `normalize`
    divides by the weights that agree.

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 3.0}, {"w": -1.0}
        >>> method = merging.breadcrumbs_ties(density=1.0)
        >>> merging.merge([a, b], method, base={"w": 0.0})["w"].item()
        3.0
    """
    return chain(
        task_vectors(),
        trim_outliers(density, gamma, tie_rule, rounding),
        elect_sign(),
        disjoint_mean(normalize),
        scale_by(scale),
        add_base(),
    )
