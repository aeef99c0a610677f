"""NearSwap: elements of another model where it is near."""

import jax.numpy as jnp

from vcjax.merging.compose import chain
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import merged


@transform()
def swap_near(t: Coefficient) -> Transform:
    """Moves to the second model where the two are nearer than `t`, by t/distance elsewhere."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        a, b = stack.values
        distance = jnp.abs(a - b)
        near = distance <= t
        share = jnp.where(near, 1, t / jnp.where(near, 1, distance)).astype(distance.dtype)
        return merged(stack, share * b + (1 - share) * a)

    return Transform(apply, locality="element", linear=True, models=(2, 2))


@recipe
def nearswap(t: Coefficient = 1e-4) -> MergeMethod:
    r"""Takes the second model where both nearly agree: :math:`w = \min(1, t / |a - b|)`.

    `w b + (1 - w) a`. `base=` may be given in place of the first model.

    Source: mergekit `nearswap` (alchemonaut, 2024).

    Args:
        t: the distance up to which the second model is taken whole.

    Example:
        >>> from vcjax import merging
        >>> merging.merge([{"w": 1.0}, {"w": 3.0}], merging.nearswap(t=0.5))["w"].item()
        1.5
    """
    return chain(swap_near(t))
