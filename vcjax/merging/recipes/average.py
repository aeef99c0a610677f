"""Averages, weighted and not, and passing one model through."""

from vcjax.merging.compose import chain
from vcjax.merging.makers import recipe
from vcjax.merging.method import MergeMethod
from vcjax.merging.shapes import Coefficient
from vcjax.merging.steps.basic import scale_by, take
from vcjax.merging.steps.reductions import weighted_sum


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
def passthrough(scale: Coefficient = 1.0) -> MergeMethod:
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
