"""DARE: elements of task vectors are dropped at random, and what is left is rescaled."""

from vcjax.merging.compose import chain
from vcjax.merging.makers import recipe
from vcjax.merging.method import MergeMethod
from vcjax.merging.shapes import Coefficient, Coefficients
from vcjax.merging.steps.basic import add_base, scale_by, task_vectors
from vcjax.merging.steps.drop import drop
from vcjax.merging.steps.reductions import disjoint_mean, elect_sign, weighted_sum


@recipe
def dare_linear(
    density: Coefficients = 0.5,
    scale: Coefficient = 1.0,
    normalize: bool = False,
    rescale: str | None = "density",
) -> MergeMethod:
    r"""DARE: drop task vector elements at random, rescale, add up.

    :math:`b + λ \sum w_i m_i ⊙ τ_i / p` with :math:`m_i ∼ \mathrm{Bernoulli}(p)`.

    Source: Yu et al., 2024 (arXiv 2311.03099), §3.2; mergekit `dare_linear`.

    Args:
        density: p, the probability that an element is kept.
        scale: λ.
        normalize: divide by the sum of the weights.
        rescale: "density" (the paper) or "l1" (mergekit), see `drop`.

    Example:
        >>> from vcjax import merging
        >>> merged = merging.merge([{"w": 3.0}], merging.dare_linear(1.0), {"w": 1.0}, key=0)
        >>> merged["w"].item()
        3.0
    """
    return chain(
        task_vectors(), drop(density, rescale), weighted_sum(normalize), scale_by(scale), add_base()
    )


@recipe
def dare_ties(
    density: Coefficients = 0.5,
    scale: Coefficient = 1.0,
    normalize: bool = False,
    rescale: str | None = "density",
) -> MergeMethod:
    """DARE, then TIES' sign election and disjoint merge.

    Source: Yu et al., 2024 (arXiv 2311.03099), §4.3; mergekit `dare_ties`, which does
    not divide by the number of models that agree (`normalize=True` does, as TIES).

    Args:
        density: the probability that an element is kept.
        scale: λ.
        normalize: divide by the weights that agree.
        rescale: "density" (the paper) or "l1" (mergekit), see `drop`.

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 3.0}, {"w": -0.5}
        >>> merging.merge([a, b], merging.dare_ties(1.0), base={"w": 0.0}, key=0)["w"].item()
        3.0
    """
    return chain(
        task_vectors(),
        drop(density, rescale),
        elect_sign(),
        disjoint_mean(normalize),
        scale_by(scale),
        add_base(),
    )
