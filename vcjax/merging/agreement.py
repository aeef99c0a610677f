"""Methods that ask, element by element, which models changed it: SCE, RAM."""

import functools
import operator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vcjax.merging.atoms import add_base, merged, safe_divide, scale_by, task_vectors
from vcjax.merging.compose import chain
from vcjax.merging.method import MergeMethod, Stack, Transform, checked, recipe, transform
from vcjax.merging.selection import keep_mask, kth_largest, magnitude_keys


def total(values: Any) -> jax.Array:
    """The sum of some arrays."""
    return functools.reduce(operator.add, values)


def variance_mask(values: tuple[jax.Array, ...], share: Any) -> jax.Array:
    """Where the variance over models is among the top share of the non-zero variances."""
    mean = total(values) / len(values)
    variance = total(jnp.square(x - mean) for x in values) / len(values)
    keys = magnitude_keys(variance)
    varying = jnp.sum(keys > 0, dtype=jnp.int32)
    # Up to 2^24 positions this is exact; beyond, to 1e-7 of them.
    wanted = jnp.floor(jnp.asarray(share, jnp.float32) * varying * (1 + 3e-7))
    k = jnp.clip(wanted.astype(jnp.int32), 0, varying)
    mask = keep_mask(keys, kth_largest(keys, jnp.maximum(k, 1)), k) & (k > 0)
    return mask | jnp.isnan(variance)


@transform("select_topk", "least")
def select_calculate_erase(select_topk: Any = 1.0, least: float = 1e-6) -> Transform:
    """SCE's three steps on task vectors; see `sce`."""
    checked("select_topk", select_topk, 0, 1)

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        values = stack.values
        if not (isinstance(select_topk, (int, float)) and select_topk >= 1):
            mask = variance_mask(values, select_topk)
            values = tuple(jnp.where(mask, x, 0) for x in values)
        energy = jnp.stack([jnp.mean(jnp.square(x)) for x in values])
        return merged(stack, erase_minority(values, energy_weights(energy, least)))

    return Transform(apply)


def energy_weights(energy: jax.Array, least: float) -> jax.Array:
    """SCE's weights: each task vector's share of the energy; equal if that is below `least`."""
    whole = jnp.sum(energy)
    tiny = whole < least
    return jnp.where(tiny, 1 / energy.size, energy / jnp.where(tiny, 1, whole))


def erase_minority(values: tuple[jax.Array, ...], weights: jax.Array) -> jax.Array:
    """The weighted mean, element by element, of the values that have the sign of their sum."""
    positive = total(values) >= 0
    agree = [jnp.where(positive, x > 0, x < 0) | jnp.isnan(x) for x in values]
    share = [jnp.where(m, w, 0) for m, w in zip(agree, weights, strict=True)]
    mixed = total(w * x for w, x in zip(share, values, strict=True))
    return safe_divide(mixed, total(share))


@recipe
def sce(select_topk: Any = 1.0, scale: Any = 1.0, least: float = 1e-6) -> MergeMethod:
    r"""SCE: select by variance, calculate weights from energy, erase minority signs.

    Selects the positions with the largest variance over models, weighs each task
    vector by :math:`\mathrm{mean}(τ_i^2)`, leaves out values whose sign is not that
    of the sum, and takes the weighted mean of the rest.

    Source: Wan et al., 2024 (FuseChat, arXiv 2408.07990), §3.3; mergekit `sce`.

    Args:
        select_topk: share of the positions of non-zero variance that is selected.
        scale: λ.
        least: summed energy below which all models weigh the same (mergekit's
            1e-6, which catches task vectors of a size of 1e-3; 0 for the paper).

    Example:
        >>> from vcjax import merging
        >>> a, b = {"w": 3.0}, {"w": -1.0}
        >>> merging.merge([a, b], merging.sce(), base={"w": 0.0})["w"].item()
        3.0
    """
    return chain(
        task_vectors(), select_calculate_erase(select_topk, least), scale_by(scale), add_base()
    )


@dataclass(frozen=True)
class SharedFold:
    """Folds the mean over the models that changed an element."""

    epsilon: float

    def init(self, like: jax.Array) -> Any:
        """No models yet: the sum of changes and how many changed."""
        return jnp.zeros_like(like), jnp.zeros_like(like)

    def update(self, state: Any, value: jax.Array, weight: jax.Array) -> Any:
        """One more model."""
        changed = changes(value, self.epsilon)
        return state[0] + jnp.where(changed, value, 0), state[1] + changed

    def finish(self, state: Any) -> jax.Array:
        """The mean of the changes."""
        return safe_divide(*state)


def changes(x: jax.Array, epsilon: Any) -> jax.Array:
    """Where a task vector is not zero, to within `epsilon`."""
    return (jnp.abs(x) > epsilon) | jnp.isnan(x)


@transform("epsilon")
def shared_mean(epsilon: float = 1e-5) -> Transform:
    """The mean over the models that changed an element by more than `epsilon`."""
    fold = SharedFold(epsilon)

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        state = fold.init(stack.values[0])
        for value in stack.values:
            state = fold.update(state, value, stack.weights[0])
        return merged(stack, fold.finish(state))

    return Transform(apply, locality="element", fold=fold)


@transform()
def boost_unique(r: Any = 0.1, alpha: Any = 0.2, epsilon: float = 1e-5) -> Transform:
    """RAM+: scales the changes that one model made alone; see `ram_plus`."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
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
def ram_plus(r: Any = 0.1, alpha: Any = 0.2, epsilon: float = 1e-5) -> MergeMethod:
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
