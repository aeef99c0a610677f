"""Methods that drop parts of task vectors: TIES, DARE."""

from typing import Any

from vcjax.merging.atoms import (
    add_base,
    disjoint_mean,
    drop,
    elect_sign,
    scale_by,
    task_vectors,
    trim,
    weighted_sum,
)
from vcjax.merging.compose import chain
from vcjax.merging.method import MergeMethod, recipe


@recipe
def ties(
    density: Any = 0.2,
    scale: Any = 1.0,
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


@recipe
def dare_linear(
    density: Any = 0.5, scale: Any = 1.0, normalize: bool = False, rescale: str | None = "density"
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
    density: Any = 0.5, scale: Any = 1.0, normalize: bool = False, rescale: str | None = "density"
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
