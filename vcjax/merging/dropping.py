"""Steps that drop parts of task vectors otherwise than by a plain top-k."""

from typing import Any

import jax
import jax.numpy as jnp

from vcjax import errors
from vcjax.merging.atoms import keep_where, mapped, rescaled
from vcjax.merging.counter import bernoulli, random_bits
from vcjax.merging.method import Stack, Transform, checked, chosen, transform
from vcjax.merging.selection import TIE_RULES, count, keep_mask, kth_largest, magnitude_keys


@transform("density", "gamma")
def trim_outliers(
    density: Any, gamma: Any = 0.01, tie_rule: str = "exact", rounding: str = "ceil"
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

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
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


def rank_share(x: jax.Array, axis: int) -> jax.Array:
    """Rank of magnitudes along an axis as a share from 0 (smallest) to 1 (largest)."""
    if x.ndim == 0 or x.shape[axis] == 1:
        return jnp.full(x.shape, 0.5, x.dtype)
    order = jnp.argsort(magnitude_keys(x), axis=axis)
    ranks = jnp.argsort(order, axis=axis)
    return ranks.astype(x.dtype) / (x.shape[axis] - 1)


@transform("density", "epsilon")
def drop_by_rank(
    density: Any, epsilon: Any = 0.15, rescale: str | None = "probability", axis: int = -1
) -> Transform:
    r"""Keeps elements with a probability that grows with their rank in a row.

    :math:`p = density - ε + 2ε·r`, r from 0 for the smallest magnitude of the row to
    1 for the largest.

    Source: Deep et al., 2024 (DELLA), §3.1 (MagPrune); ranks as mergekit.

    Args:
        density: mean probability of being kept; 1 keeps all.
        epsilon: half the range of probabilities.
        rescale: "probability" divides each element by its p (the paper), "l1",
            "l2" and "linf" restore that norm of the leaf (mergekit: "l1"), None.
        axis: along which magnitudes are ranked. -1 as mergekit, whose rows are
            outputs; the outputs of a Flax kernel `[in, out]` have axis 0.
    """
    checked("density", density, 0, 1)
    chosen("rescale", rescale, "probability", "l1", "l2", "linf", None)
    numbers = isinstance(density, (int, float)) and isinstance(epsilon, (int, float))
    if numbers and density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise errors.MergeError(
            f"density {density} ± epsilon {epsilon} leaves (0, 1)", hint="lower epsilon"
        )

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if isinstance(density, (int, float)) and density >= 1:
            return stack
        out = []
        for i, x in enumerate(stack.values):
            probability = density - epsilon + 2 * epsilon * rank_share(x, axis)
            bits = random_bits(stack.seed, stack.model + i, x.shape, stack.row)
            kept = keep_where(bernoulli(bits, probability), x)
            if rescale == "probability":
                kept = kept / probability
            elif rescale is not None:
                kept = rescaled(x, kept, rescale)
            out.append(kept.astype(x.dtype))
        return mapped(stack, out)

    return Transform(apply, per_model=True, random=True)
