"""DELLA: elements are dropped at random, small magnitudes more often."""

import jax.numpy as jnp
import numpy as np

from vcjax import errors
from vcjax.merging.compose import chain
from vcjax.merging.kernels.random_bits import bernoulli, random_bits
from vcjax.merging.kernels.top_k import magnitude_keys
from vcjax.merging.makers import checked, chosen, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals, Value
from vcjax.merging.steps.basic import add_base, keep_where, mapped, scale_by, task_vectors
from vcjax.merging.steps.drop import rescaled
from vcjax.merging.steps.reductions import disjoint_mean, elect_sign, weighted_sum
from vcjax.merging.steps.sliced import Sliced, plain


def rank_share(x: Value, axis: int) -> Value:
    """Rank of magnitudes along an axis as a share from 0 (smallest) to 1 (largest)."""
    if x.ndim == 0 or x.shape[axis] == 1:
        return jnp.full(x.shape, 0.5, x.dtype)
    order = jnp.argsort(magnitude_keys(x), axis=axis)
    ranks = jnp.argsort(order, axis=axis)
    return ranks.astype(x.dtype) / (x.shape[axis] - 1)


@transform("density", "epsilon")
def drop_by_rank(
    density: Coefficient,
    epsilon: Coefficient = 0.15,
    rescale: str | None = "probability",
    axis: int = -1,
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

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
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

    def slices(dtype: np.dtype) -> Sliced | None:
        if axis != -1 or rescale not in ("probability", None):
            return None
        # A leaf of one axis is a single row.
        return Sliced(plain(apply), rows=True, axes=2)

    return Transform(apply, per_model=True, random=True, slices=slices)


@recipe
def della(
    density: Coefficient = 0.5,
    epsilon: Coefficient = 0.15,
    scale: Coefficient = 1.0,
    normalize: bool = True,
    rescale: str | None = "probability",
    axis: int = -1,
) -> MergeMethod:
    r"""DELLA: drop by rank of magnitude, elect signs, disjoint mean.

    Source: Deep et al., 2024 (arXiv 2406.11617), §3; mergekit `della`.

    Args:
        density: mean probability of being kept.
        epsilon: half the range of probabilities within a row.
        scale: λ.
        normalize: divide by the weights that agree.
        rescale: "probability" (the paper) or "l1" (mergekit), see `drop_by_rank`.
        axis: along which magnitudes are ranked.

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 3.0}, {"w": -1.0}
        >>> merging.merge([a, b], merging.della(1.0), base={"w": 0.0}, key=0)["w"].item()
        3.0
    """
    return chain(
        task_vectors(),
        drop_by_rank(density, epsilon, rescale, axis),
        elect_sign(),
        disjoint_mean(normalize),
        scale_by(scale),
        add_base(),
    )


@recipe
def della_linear(
    density: Coefficient = 0.5,
    epsilon: Coefficient = 0.15,
    scale: Coefficient = 1.0,
    normalize: bool = False,
    rescale: str | None = "probability",
    axis: int = -1,
) -> MergeMethod:
    """DELLA's dropping without sign election. Arguments as `della`.

    Source: mergekit `della_linear`.

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 3.0}, {"w": -1.0}
        >>> merging.merge([a, b], merging.della_linear(1.0), base={"w": 0.0}, key=0)["w"].item()
        2.0
    """
    return chain(
        task_vectors(),
        drop_by_rank(density, epsilon, rescale, axis),
        weighted_sum(normalize),
        scale_by(scale),
        add_base(),
    )
