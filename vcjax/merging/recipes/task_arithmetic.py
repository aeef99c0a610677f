"""Task arithmetic: the base plus a weighted sum of task vectors."""

from vcjax.merging.compose import chain
from vcjax.merging.makers import recipe
from vcjax.merging.method import MergeMethod
from vcjax.merging.shapes import Coefficient
from vcjax.merging.steps.basic import add_base, scale_by, task_vectors
from vcjax.merging.steps.reductions import weighted_sum


@recipe
def task_arithmetic(scale: Coefficient = 1.0, normalize: bool = False) -> MergeMethod:
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
