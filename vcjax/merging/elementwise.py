"""Methods that treat every element alone: averages and task arithmetic."""

from typing import Any

from vcjax.merging.atoms import add_base, scale_by, take, task_vectors, weighted_sum
from vcjax.merging.compose import chain
from vcjax.merging.method import MergeMethod, recipe


@recipe
def average() -> MergeMethod:
    r"""The mean of the models, :math:`\sum w_i x_i / \sum w_i` (w = 1 unless given).

    Source: Wortsman et al., 2022 ("Model soups"), §2, uniform soup.

    Example:
        >>> from vcjax import merging
        >>> merging.merge([{"w": 1.0}, {"w": 3.0}], merging.average())["w"].item()
        2.0
    """
    return chain(weighted_sum(normalize=True))


@recipe
def linear(normalize: bool = True) -> MergeMethod:
    r"""The weighted sum :math:`\sum w_i x_i`, divided by :math:`\sum w_i`.

    Source: mergekit `linear`.

    Args:
        normalize: divide by the sum of the weights.

    Example:
        >>> from vcjax import merging
        >>> merging.merge([{"w": 0.0}, {"w": 4.0}], merging.linear(), weights=[3, 1])["w"].item()
        1.0
    """
    return chain(weighted_sum(normalize=normalize))


@recipe
def passthrough(scale: Any = 1.0) -> MergeMethod:
    """One model, scaled: `scale · x`.

    Source: mergekit `passthrough`. With `partition` it stacks parts of models.

    Args:
        scale: factor.

    Example:
        >>> from vcjax import merging
        >>> merging.merge([{"w": 2.0}], merging.passthrough(scale=2.0))["w"].item()
        4.0
    """
    return chain(take(0), scale_by(scale))


@recipe
def task_arithmetic(scale: Any = 1.0, normalize: bool = False) -> MergeMethod:
    r"""Adds task vectors to the base: :math:`b + λ \sum w_i (x_i - b)`.

    Source: Ilharco et al., 2023 ("Editing models with task arithmetic"), §2; scale
    and normalisation as mergekit's `task_arithmetic`. Negative weights negate tasks.

    Args:
        scale: λ (mergekit 1; FusionBench .3 for eight models).
        normalize: divide by the sum of the weights.

    Example:
        >>> from vcjax import merging
        >>> forget = merging.task_arithmetic(scale=-1.0)
        >>> merging.merge([{"w": 3.0}], forget, base={"w": 1.0})["w"].item()
        -1.0
    """
    return chain(task_vectors(), weighted_sum(normalize), scale_by(scale), add_base())
