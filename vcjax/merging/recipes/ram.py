"""RAM: elements that one model alone changed are kept apart from those that several did."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import safe_divide, total
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals, Value
from vcjax.merging.steps.basic import add_base, merged, task_vectors


@dataclass(frozen=True)
class SharedFold:
    """Folds the mean over the models that changed an element."""

    epsilon: float

    def init(self, like: Value) -> PyTree:
        """No models yet: the sum of changes and how many changed."""
        return jnp.zeros_like(like), jnp.zeros_like(like)

    def update(self, state: PyTree, value: Value, weight: Float[Array, ""]) -> PyTree:
        """One more model."""
        changed = changes(value, self.epsilon)
        return state[0] + jnp.where(changed, value, 0), state[1] + changed

    def finish(self, state: PyTree) -> Value:
        """The mean of the changes."""
        return safe_divide(*state)


def changes(x: jax.Array, epsilon: Coefficient) -> jax.Array:
    """Where a task vector is not zero, to within `epsilon`."""
    return (jnp.abs(x) > epsilon) | jnp.isnan(x)


@transform("epsilon")
def shared_mean(epsilon: float = 1e-5) -> Transform:
    """The mean over the models that changed an element by more than `epsilon`."""
    fold = SharedFold(epsilon)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        state = fold.init(stack.values[0])
        for value in stack.values:
            state = fold.update(state, value, stack.weights[0])
        return merged(stack, fold.finish(state))

    return Transform(apply, locality="element", fold=fold)


@transform()
def boost_unique(
    r: Coefficient = 0.1, alpha: Coefficient = 0.2, epsilon: Coefficient = 1e-5
) -> Transform:
    """RAM+: scales the changes that one model made alone; see `ram_plus`."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        changed = [changes(x, epsilon) for x in stack.values]
        number = total(m.astype(jnp.int32) for m in changed)
        kept = [jnp.where(m, x, 0) for m, x in zip(changed, stack.values, strict=True)]
        out = jnp.zeros_like(stack.values[0])
        for m, x in zip(changed, kept, strict=True):
            alone = jnp.sum(m & (number == 1), dtype=jnp.int32).astype(x.dtype)
            together = jnp.sum(m & (number > 1), dtype=jnp.int32).astype(x.dtype)
            share = together / jnp.maximum(alone, epsilon)
            boost = 1 + r * jnp.clip(share, 0, alpha)
            out = out + jnp.where(number > 1, x / jnp.maximum(number, 1), x * boost)
        return merged(stack, out)

    return Transform(apply)


@recipe
def ram(epsilon: float = 1e-5) -> MergeMethod:
    r"""Reinforced agent merging: keep unique changes, average shared ones.

    :math:`b + \frac{\sum_i [|τ_i| > ε] τ_i}{\sum_i [|τ_i| > ε]}`.

    Source: arXiv 2601.13572; mergekit `ram`.

    Args:
        epsilon: the largest change that counts as none.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": [0.0, 0.0]}, {"w": [2.0, 2.0]}, {"w": [0.0, 4.0]}
        >>> [x.item() for x in merging.merge([a, b], merging.ram(), base=base)["w"]]
        [2.0, 3.0]
    """
    return chain(task_vectors(), shared_mean(epsilon), add_base())


@recipe
def ram_plus(r: Coefficient = 0.1, alpha: Coefficient = 0.2, epsilon: float = 1e-5) -> MergeMethod:
    r"""RAM with unique changes scaled up against the dilution of shared ones.

    Unique changes of model i are multiplied by :math:`1 + r \min(ρ_i, α)` with
    :math:`ρ_i` its number of shared changes over its number of unique ones, per leaf.

    Source: arXiv 2601.13572; mergekit `ramplus_tl`.

    Args:
        r: strength.
        alpha: largest ρ.
        epsilon: the largest change that counts as none.

    Example:
        >>> from vcjax import merging
        >>> import numpy as np
        >>> base, a, b = ({"w": np.float32(x)} for x in ([0, 0], [2, 2], [0, 4]))
        >>> merging.merge([a, b], merging.ram_plus(1.0, 1.0), base=base)["w"].tolist()
        [4.0, 3.0]
    """
    return chain(task_vectors(), boost_unique(r, alpha, epsilon), add_base())
