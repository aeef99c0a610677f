"""Methods that localise tasks by masks, some over the whole model.

Whole-model TIES, Localize-and-Stitch, Consensus (TALL masks), EMR.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vcjax.merging.agreement import total
from vcjax.merging.atoms import (
    add_base,
    disjoint_mean,
    elect_sign,
    keep_where,
    mapped,
    merged,
    safe_divide,
    scale_by,
    task_vectors,
)
from vcjax.merging.compose import chain
from vcjax.merging.method import MergeMethod, Stack, Transform, checked, chosen, recipe, transform
from vcjax.merging.selection import (
    DIGIT,
    TIE_RULES,
    Threshold,
    choose_digit,
    count,
    histogram,
    keep_mask,
    magnitude_keys,
)


@transform("density")
def trim_model(density: Any, tie_rule: str = "exact") -> Transform:
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

    def high_digits(stack: Stack, totals: tuple[Any, ...]) -> jax.Array:
        return jnp.stack([histogram(k, DIGIT, 0) for k in keys(stack)])

    def low_digits(stack: Stack, totals: tuple[Any, ...]) -> jax.Array:
        high, _, _ = jax.vmap(choose_digit, (0, None))(totals[0], wanted(stack))
        prefixes = high.astype(jnp.uint32)
        return jnp.stack([histogram(k, 0, p) for k, p in zip(keys(stack), prefixes, strict=True)])

    def thresholds(stack: Stack, totals: tuple[Any, ...]) -> Threshold:
        k = wanted(stack)
        high, above, _ = jax.vmap(choose_digit, (0, None))(totals[0], k)
        low, more, equal = jax.vmap(choose_digit)(totals[1], k - above)
        key = (high.astype(jnp.uint32) << DIGIT) | low.astype(jnp.uint32)
        return Threshold(key, above + more, equal)

    def ties_by_leaf(stack: Stack, totals: tuple[Any, ...]) -> jax.Array:
        found = thresholds(stack, totals).key
        here = [jnp.sum(k == t, dtype=jnp.int32) for k, t in zip(keys(stack), found, strict=True)]
        place = jnp.arange(stack.leaves)[:, None] == stack.at
        return jnp.where(place, jnp.stack(here), 0)

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
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
def ties_whole(density: Any = 0.2, scale: Any = 1.0, tie_rule: str = "exact") -> MergeMethod:
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


@transform()
def stitch() -> Transform:
    r"""The mean over the models whose mask covers an element, :math:`\sum mτ / \sum m`."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        weighted = list(zip(stack.weights, stack.values, strict=True))
        covered = total(jnp.where(x != 0, w, 0) for w, x in weighted)
        return merged(stack, safe_divide(total(w * x for w, x in weighted), covered))

    return Transform(apply, locality="element", weighted=True)


@recipe
def localize_and_stitch(density: Any = 0.05, scale: Any = 1.0) -> MergeMethod:
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


@transform()
def consensus_mask(threshold: Any = 0.4, agree: int = 2) -> Transform:
    """The multi-task vector where enough tasks' TALL masks meet; see `consensus`."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        values = [w * x for w, x in zip(stack.weights, stack.values, strict=True)]
        whole = total(values)
        used = [jnp.abs(x) > threshold * jnp.abs(whole - x) for x in values]
        enough = total(m.astype(jnp.int32) for m in used) >= agree
        return merged(stack, keep_where(enough, whole))

    return Transform(apply, locality="element", weighted=True)


@recipe
def consensus(scale: Any = 1.0, threshold: Any = 0.4, agree: int = 2) -> MergeMethod:
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


@transform()
def elect_largest() -> Transform:
    """The elected sign with the largest magnitude among the values that have it."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        values = [w * x for w, x in zip(stack.weights, stack.values, strict=True)]
        summed = total(values)
        sign = jnp.where(jnp.isnan(summed), summed, jnp.sign(summed))
        largest = jnp.zeros_like(summed)
        for x in values:
            largest = jnp.maximum(largest, jnp.where(x * sign > 0, jnp.abs(x), 0))
        return merged(stack, sign * largest)

    return Transform(apply, locality="element", weighted=True)


@recipe
def emr(scale: Any = 1.0) -> MergeMethod:
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


def emr_task(unified: Any, model: Any, base: Any) -> tuple[Any, jax.Array]:
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

    def delta(x: Any, b: Any) -> jax.Array:
        return jnp.asarray(x, jnp.float32) - jnp.asarray(b, jnp.float32)

    common, own = (jax.tree.map(delta, tree, base) for tree in (unified, model))
    masks = jax.tree.map(lambda c, o: c * o > 0, common, own)
    size = total(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(own))
    kept = jax.tree.map(lambda m, c: jnp.sum(jnp.where(m, jnp.abs(c), 0)), masks, common)
    return masks, safe_divide(size, total(jax.tree.leaves(kept)))
