"""TIES: trim, elect sign, disjoint merge; per leaf, or with one threshold for the model."""

import jax
import jax.numpy as jnp

from vcjax.merging.compose import chain
from vcjax.merging.kernels.top_k import (
    DIGIT,
    TIE_RULES,
    Threshold,
    choose_digit,
    count,
    histogram,
    keep_mask,
    magnitude_keys,
)
from vcjax.merging.makers import checked, chosen, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Coefficients, Totals
from vcjax.merging.steps.basic import add_base, keep_where, mapped, scale_by, task_vectors
from vcjax.merging.steps.reductions import disjoint_mean, elect_sign
from vcjax.merging.steps.trim import trim


@recipe
def ties(
    density: Coefficients = 0.2,
    scale: Coefficient = 1.0,
    normalize: bool = True,
    tie_rule: str = "exact",
    rounding: str = "ceil",
) -> MergeMethod:
    r"""TIES: trim, elect sign, disjoint merge.

    With :math:`\hat τ_i` the task vectors of which only the largest magnitudes are
    kept and :math:`γ = \operatorname{sign} \sum w_i \hat τ_i`,

    .. math:: b + λ \frac{\sum w_i [\operatorname{sign} w_i\hat τ_i = γ] \hat τ_i}
        {\sum w_i [\operatorname{sign} w_i\hat τ_i = γ]}

    Source: Yadav et al., 2023 (arXiv 2306.01708), §3, Algorithm 1; per leaf, weights
    before the election and + on a zero sum, as mergekit's `ties`.

    Args:
        density: fraction of each task vector that is kept (paper: .2).
        scale: λ.
        normalize: divide by the weights that agree.
        tie_rule: "exact" or ">=", see `trim`.
        rounding: of the number kept, "ceil" or "floor" (mergekit).

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": [0.0, 0.0]}, {"w": [2.0, 1.0]}, {"w": [4.0, -3.0]}
        >>> [x.item() for x in merging.merge([a, b], merging.ties(1.0), base=base)["w"]]
        [3.0, -3.0]
    """
    return chain(
        task_vectors(),
        trim(density, tie_rule, rounding),
        elect_sign(),
        disjoint_mean(normalize),
        scale_by(scale),
        add_base(),
    )


@transform("density")
def trim_model(density: Coefficient, tie_rule: str = "exact") -> Transform:
    r"""Keeps the largest :math:`⌈density·n⌉` magnitudes of each whole model.

    Two histograms of 16 bits, summed over the leaves, give the threshold; among
    ties, earlier leaves and lower flat indices are kept first. Magnitudes are
    compared in float32.

    Args:
        density: fraction that is kept.
        tie_rule: see `trim`.
    """
    checked("density", density, 0, 1)
    chosen("tie_rule", tie_rule, *TIE_RULES)

    def keys(stack: Stack) -> list[jax.Array]:
        return [magnitude_keys(x.astype(jnp.float32)) for x in stack.values]

    def wanted(stack: Stack) -> jax.Array:
        return jnp.asarray(count(density, stack.size), jnp.int32)

    def high_digits(stack: Stack, totals: Totals) -> jax.Array:
        return jnp.stack([histogram(k, DIGIT, 0) for k in keys(stack)])

    def low_digits(stack: Stack, totals: Totals) -> jax.Array:
        high, _, _ = jax.vmap(choose_digit, (0, None))(totals[0], wanted(stack))
        prefixes = high.astype(jnp.uint32)
        return jnp.stack([histogram(k, 0, p) for k, p in zip(keys(stack), prefixes, strict=True)])

    def thresholds(stack: Stack, totals: Totals) -> Threshold:
        k = wanted(stack)
        high, above, _ = jax.vmap(choose_digit, (0, None))(totals[0], k)
        low, more, equal = jax.vmap(choose_digit)(totals[1], k - above)
        key = (high.astype(jnp.uint32) << DIGIT) | low.astype(jnp.uint32)
        return Threshold(key, above + more, equal)

    def ties_by_leaf(stack: Stack, totals: Totals) -> jax.Array:
        found = thresholds(stack, totals).key
        here = [jnp.sum(k == t, dtype=jnp.int32) for k, t in zip(keys(stack), found, strict=True)]
        place = jnp.arange(stack.leaves)[:, None] == stack.at
        return jnp.where(place, jnp.stack(here), 0)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        found = thresholds(stack, totals)
        ties = totals[2]
        before = jnp.sum(jnp.where(jnp.arange(stack.leaves)[:, None] < stack.at, ties, 0), axis=0)
        here = ties[stack.at]
        share = jnp.clip(wanted(stack) - found.above - before, 0, here)
        out = []
        for i, (k, x) in enumerate(zip(keys(stack), stack.values, strict=True)):
            if tie_rule == ">=":
                mask = (k >= found.key[i]) & (wanted(stack) > 0)
            else:
                local = Threshold(found.key[i], jnp.int32(0), here[i])
                mask = keep_mask(k, local, share[i])
            out.append(keep_where(mask, x))
        return mapped(stack, out)

    rounds = (high_digits, low_digits, ties_by_leaf)
    return Transform(apply, rounds, locality="model", per_model=True)


@recipe
def ties_whole(
    density: Coefficient = 0.2, scale: Coefficient = 1.0, tie_rule: str = "exact"
) -> MergeMethod:
    """TIES with one threshold per model instead of per leaf, as the paper has it.

    Source: Yadav et al., 2023 (arXiv 2306.01708), whose code trims the flattened
    model; `ties` trims leaf by leaf, as mergekit.

    Args:
        density: fraction of each task vector that is kept.
        scale: λ.
        tie_rule: "exact" or ">=" (the official code), see `trim`.

    Example:
        >>> from vcjax import merging
        >>> base, a = {"u": [0.0, 0.0], "w": [0.0, 0.0]}, {"u": [5.0, 4.0], "w": [1.0, 2.0]}
        >>> out = merging.merge([a], merging.ties_whole(0.5), base=base)
        >>> [x.item() for x in out["u"] + out["w"]]
        [5.0, 4.0, 0.0, 0.0]
    """
    return chain(
        task_vectors(),
        trim_model(density, tie_rule),
        elect_sign(),
        disjoint_mean(),
        scale_by(scale),
        add_base(),
    )
