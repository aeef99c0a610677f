"""Methods that drop parts of task vectors: TIES, DARE, Breadcrumbs, DELLA."""

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
from vcjax.merging.dropping import drop_by_rank, trim_outliers
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


@recipe
def breadcrumbs(
    density: Any = 0.9,
    gamma: Any = 0.01,
    scale: Any = 1.0,
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
    density: Any = 0.9,
    gamma: Any = 0.01,
    scale: Any = 1.0,
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


@recipe
def della(
    density: Any = 0.5,
    epsilon: Any = 0.15,
    scale: Any = 1.0,
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
    density: Any = 0.5,
    epsilon: Any = 0.15,
    scale: Any = 1.0,
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
