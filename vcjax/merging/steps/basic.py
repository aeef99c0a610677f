"""The steps that merge methods are chained from.

Steps before a reduction work on N values, the reduction makes one of them, and
steps after it work on the merged value. A NaN of any model stays: it is the
largest magnitude of its leaf, is never masked away, and agrees with every sign.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.merging.kernels.host_counts import Quota, Ties, nth_digit
from vcjax.merging.kernels.linalg import safe_divide
from vcjax.merging.kernels.random_bits import bernoulli, flat_index, random_bits
from vcjax.merging.kernels.top_k import (
    TIE_RULES,
    Threshold,
    count,
    histogram,
    keep_mask,
    magnitude_keys,
    number_set,
    top_mask,
)
from vcjax.merging.method import Stack, Transform, checked, chosen, transform
from vcjax.merging.steps.sliced import Facts, Measure, Sliced, on_slices, plain

DIGIT = 16


def mapped(stack: Stack, values: list[jax.Array]) -> Stack:
    """The stack with other values."""
    return replace(stack, values=tuple(values))


def merged(stack: Stack, value: jax.Array) -> Stack:
    """The stack after a reduction."""
    return replace(stack, values=(value,), agree=None)


def keep_where(mask: jax.Array, value: jax.Array) -> jax.Array:
    """`value` where `mask`, zero elsewhere; NaN stays."""
    return jnp.where(mask | jnp.isnan(value), value, jnp.zeros((), value.dtype))


@transform()
def task_vectors(required: bool = True) -> Transform:
    r"""Task vectors :math:`τ_i = x_i - b` (Ilharco et al., 2023, §2).

    Args:
        required: without a base, raise; if False, leave the models as they are.
    """

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if stack.base is None:
            return stack
        return mapped(stack, [x - stack.base for x in stack.values])

    return Transform(apply, locality="element", per_model=True, needs_base=required, linear=True)


@transform()
def add_base(required: bool = True) -> Transform:
    """Adds the base model to the merged task vector.

    Args:
        required: without a base, raise; if False, leave the value as it is.
    """

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if stack.base is None:
            return stack
        return mapped(stack, [stack.base + x for x in stack.values])

    return Transform(apply, locality="element", needs_base=required, linear=True)


@transform()
def scale_by(factor: Any) -> Transform:
    """Multiplies by a factor; a negative one negates a task (Ilharco et al., 2023, §3)."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        return mapped(stack, [(x * factor).astype(x.dtype) for x in stack.values])

    return Transform(apply, locality="element", linear=True)


@transform()
def take(position: int = 0) -> Transform:
    """The value of one model."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        return merged(stack, stack.values[position])

    return Transform(apply, locality="element", linear=True, models=(position + 1, None))


@transform()
def take_base() -> Transform:
    """The base model if there is one, else the first model."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        return merged(stack, stack.values[0] if stack.base is None else stack.base)

    return Transform(apply, locality="element", linear=True)


@dataclass(frozen=True)
class SumFold:
    """Folds a weighted sum: the sum and the sum of the weights."""

    normalize: bool

    def init(self, like: jax.Array) -> Any:
        """No models yet."""
        return jnp.zeros_like(like), jnp.zeros((), jnp.finfo(like.dtype).dtype)

    def update(self, state: Any, value: jax.Array, weight: jax.Array) -> Any:
        """One more model."""
        total, weights = state
        return total + weight * value, weights + weight

    def finish(self, state: Any) -> jax.Array:
        """The (normalised) sum."""
        total, weights = state
        return normalised(total, weights) if self.normalize else total


def normalised(total: jax.Array, weights: jax.Array) -> jax.Array:
    """`total / weights`, and `total` where the weights cancel (below 1e-8, as mergekit)."""
    return total / jnp.where(jnp.abs(weights) < 1e-8, jnp.ones_like(weights), weights)


@transform()
def weighted_sum(normalize: bool = False) -> Transform:
    r""":math:`\sum w_i x_i`, divided by :math:`\sum w_i` if `normalize`."""
    fold = SumFold(normalize)

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        state = fold.init(stack.values[0])
        for i, value in enumerate(stack.values):
            state = fold.update(state, value, stack.weights[i])
        return merged(stack, fold.finish(state))

    return Transform(apply, locality="element", linear=True, weighted=True, fold=fold)


@transform("density")
def trim(density: Any, tie_rule: str = "exact", rounding: str = "ceil") -> Transform:
    r"""Keeps the largest :math:`⌈density·n⌉` magnitudes of each leaf, zeroes the rest.

    Source: Yadav et al., 2023 (TIES), §3.1, per leaf as mergekit.

    Args:
        density: fraction that is kept; a tuple has one for each model.
        tie_rule: "exact" keeps exactly so many, lowest flat index first; ">=" also
            keeps all that equal the smallest kept magnitude (the official code).
        rounding: of the number of elements: "ceil", or "floor" as mergekit.
    """
    checked("density", density, 0, 1)
    chosen("tie_rule", tie_rule, *TIE_RULES)
    chosen("rounding", rounding, "ceil", "floor")

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if isinstance(density, (int, float)) and density >= 1:
            return stack
        size = stack.values[0].size
        if isinstance(density, tuple):
            counts = jnp.asarray([count(one, size, rounding) for one in density], jnp.int32)
            ks = [counts[stack.model + i] for i in range(len(stack.values))]
        else:
            ks = [count(density, size, rounding)] * len(stack.values)
        pairs = zip(stack.values, ks, strict=True)
        return mapped(stack, [keep_where(top_mask(x, k, tie_rule), x) for x, k in pairs])

    return Transform(apply, per_model=True)


def rescaled(before: jax.Array, after: jax.Array, norm: str) -> jax.Array:
    """`after` brought to the norm of `before` over the leaf; unchanged if either is < 1e-7."""
    measure = {
        "l1": lambda x: jnp.sum(jnp.abs(x)),
        "l2": lambda x: jnp.sqrt(jnp.sum(jnp.square(x))),
        "linf": lambda x: jnp.max(jnp.abs(x)),
    }[norm]
    # The ratio only restores a size: as in mergekit it is a constant of the choice.
    was, now = (jax.lax.stop_gradient(measure(x)) for x in (before, after))
    small = (was < 1e-7) | (now < 1e-7)
    return after * jnp.where(small, 1, was / jnp.where(small, 1, now)).astype(after.dtype)


@transform()
def drop(density: Any, rescale: str | None = "density") -> Transform:
    r"""Keeps each element with probability `density`, and rescales what is left.

    Source: Yu et al., 2024 (DARE), §3.2: :math:`\hat τ = m ⊙ τ / density`.

    Args:
        density: probability of being kept; a tuple has one for each model.
        rescale: "density" divides by it (the paper, unbiased), "l1", "l2" and
            "linf" restore that norm of the leaf (mergekit: "l1"), None leaves it.
    """
    checked("density", density, 0, 1)
    chosen("rescale", rescale, "density", "l1", "l2", "linf", None)

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        kept = []
        for i, x in enumerate(stack.values):
            bits = random_bits(stack.seed, stack.model + i, x.shape, stack.row)
            share: Any = density
            if isinstance(density, tuple):
                share = jnp.asarray(density, jnp.float32)[stack.model + i]
            masked = keep_where(bernoulli(bits, share), x)
            if rescale == "density":
                masked = masked / jnp.maximum(jnp.asarray(share, x.real.dtype), 1e-12)
            elif rescale is not None:
                masked = rescaled(x, masked, rescale)
            kept.append(masked.astype(x.dtype))
        return mapped(stack, kept)

    element = rescale in ("density", None)
    return Transform(
        apply, locality="element" if element else "leaf", per_model=True, random=True, linear=True
    )


@transform()
def elect_sign(by: str = "sum") -> Transform:
    r"""Elects a sign per element and marks the values that have it.

    :math:`γ = \operatorname{sign} \sum w_i τ_i`, + where the sum is 0 (mergekit);
    values that are 0 never agree. Source: Yadav et al., 2023 (TIES), §3.2.

    Args:
        by: "sum" weighs signs by magnitude, "count" counts them.
    """
    chosen("by", by, "sum", "count")

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        votes = [x * stack.weights[i] for i, x in enumerate(stack.values)]
        ballots = votes if by == "sum" else [jnp.sign(v) for v in votes]
        positive = sum(ballots[1:], ballots[0]) >= 0
        agree = [jnp.where(positive, v > 0, v < 0) | jnp.isnan(v) for v in votes]
        return replace(stack, agree=tuple(agree))

    return Transform(apply, locality="element", weighted=True, folds_away=by == "sum")


@dataclass(frozen=True)
class SignedFold:
    """Folds sign election by sum and disjoint mean: one sum for either sign."""

    normalize: bool

    def init(self, like: jax.Array) -> Any:
        """No models yet: positive sum, its weights, negative sum, its weights."""
        return tuple(jnp.zeros_like(like) for _ in range(4))

    def update(self, state: Any, value: jax.Array, weight: jax.Array) -> Any:
        """One more model."""
        up, up_weight, down, down_weight = state
        vote = value * weight
        rises, falls = (vote > 0) | jnp.isnan(vote), vote < 0
        return (
            up + jnp.where(rises, vote, 0),
            up_weight + jnp.where(rises, weight, 0),
            down + jnp.where(falls, vote, 0),
            down_weight + jnp.where(falls, weight, 0),
        )

    def finish(self, state: Any) -> jax.Array:
        """The sum (or mean) of the sign with the larger sum; NaN stays."""
        up, up_weight, down, down_weight = state
        positive = ~(up + down < 0)
        total = jnp.where(positive, up, down)
        weights = jnp.where(positive, up_weight, down_weight)
        return safe_divide(total, weights) if self.normalize else total


@transform()
def disjoint_mean(normalize: bool = True) -> Transform:
    r"""The mean of the values that agree: :math:`\sum w_i m_i τ_i / \sum w_i m_i`.

    Zero where none agrees. Source: Yadav et al., 2023 (TIES), §3.3.

    Args:
        normalize: divide by the weights of those that agree.
    """

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        agree = stack.agree or tuple(x != 0 for x in stack.values)
        total = jnp.zeros_like(stack.values[0])
        weights = jnp.zeros_like(total)
        for i, (x, m) in enumerate(zip(stack.values, agree, strict=True)):
            total = total + jnp.where(m, x * stack.weights[i], 0)
            weights = weights + jnp.where(m, stack.weights[i], 0)
        return merged(stack, safe_divide(total, weights) if normalize else total)

    return Transform(apply, locality="element", weighted=True, fold=SignedFold(normalize))


class Kept(NamedTuple):
    """How many elements are kept: a number, or one for each model."""

    k: Any

    def of(self, model: Any) -> Any:
        """That of one model."""
        return self.k if self.k.ndim == 0 else self.k[model]


@on_slices("trim")
def _trim(dtype: np.dtype, density: Any, tie_rule: str, rounding: str) -> Sliced | None:
    if not isinstance(density, (int, float, tuple)):
        return None
    if not isinstance(density, tuple) and density >= 1:
        return Sliced(lambda stack, facts, state, carry: (stack, carry))

    def apply(stack: Stack, facts: Kept, state: Threshold, carry: Ties) -> tuple[Stack, Any]:
        kept, ties = [], []
        for i, x in enumerate(stack.values):
            keys = magnitude_keys(x)
            tied = keys == state.key[i]
            if carry.stops is not None:
                taken = tied & (flat_index(keys.shape) < carry.stops[i])
                kept.append(keep_where((keys > state.key[i]) | taken, x))
                continue
            # Ties of the slices before come first: they count as larger.
            found = Threshold(state.key[i], state.above[i] + carry.taken[i], state.equal[i])
            kept.append(keep_where(keep_mask(keys, found, facts.of(stack.model + i), tie_rule), x))
            ties.append(number_set(tied))
        if ties and tie_rule == "exact":
            carry = Ties(carry.taken + jnp.stack(ties))
        return mapped(stack, kept), carry

    def quota(facts: Kept, state: Threshold) -> Quota:
        above, equal = np.asarray(state.above), np.asarray(state.equal)
        wanted = facts.k - above if tie_rule == "exact" else np.where(facts.k > 0, equal, 0)
        return Quota(np.asarray(state.key) & 0xFFFF, np.broadcast_to(wanted, above.shape))

    def facts(size: int) -> Kept:
        if isinstance(density, tuple):
            return Kept(np.array([count(one, size, rounding) for one in density], np.int32))
        return Kept(np.asarray(count(density, size, rounding), np.int32))

    def carry(models: int) -> Ties:
        return Ties(np.zeros(models, np.int32))

    return Sliced(apply, _radix(dtype), facts, carry, quota=quota)


def _radix(dtype: np.dtype) -> tuple[Measure, ...]:
    """The k-th largest magnitude of each value, 16 bits a pass; the state is a `Threshold`."""
    passes = 8 * dtype.itemsize // DIGIT
    kind = np.dtype(f"uint{8 * dtype.itemsize}")

    def measure(number: int) -> Measure:
        shift = DIGIT * (passes - 1 - number)

        def take(stack: Stack, facts: Kept, state: Any) -> jax.Array:
            prefix = state.key if number else jnp.zeros(len(stack.values), kind)
            pairs = zip(stack.values, prefix, strict=True)
            return jnp.stack([histogram(magnitude_keys(x), shift, p) for x, p in pairs])

        def pick(stack: Stack, facts: Kept, state: Any) -> list[tuple[jax.Array, jax.Array]]:
            keys = [magnitude_keys(x) >> np.array(shift, kind) for x in stack.values]
            pairs = zip(keys, state.key, strict=True)
            return [(k >> DIGIT == p, k.astype(np.uint16)) for k, p in pairs]

        def conclude(facts: Kept, state: Any, sums: np.ndarray) -> Threshold:
            models = sums.shape[0]
            nothing = np.zeros(models, np.int32)
            before = state if number else Threshold(np.zeros(models, kind), nothing, nothing)
            found = map(nth_digit, sums, np.broadcast_to(facts.k - before.above, models))
            digit, more, equal = (np.array(numbers) for numbers in zip(*found, strict=True))
            key = (before.key << np.array(DIGIT % (8 * kind.itemsize), kind)) | digit.astype(kind)
            above = (before.above + more).astype(np.int32)
            return Threshold(key, above, equal.astype(np.int32))

        # In the first pass every element counts.
        return Measure(take, conclude, on_host=True, pick=pick if number else None)

    return tuple(measure(number) for number in range(passes))


@on_slices("drop")
def _drop(dtype: np.dtype, density: Any, rescale: str | None) -> Sliced | None:
    if rescale in ("density", None):
        return Sliced(plain(drop(density, rescale)), rows=True)
    if rescale == "linf":  # a largest value is no sum
        return None
    bare = drop(density, None)
    power = {"l1": jnp.abs, "l2": jnp.square}[rescale]

    def take(stack: Stack, facts: Facts, state: Any) -> jax.Array:
        dropped = bare.apply(stack, ()).values
        pairs = zip(stack.values, dropped, strict=True)
        return jnp.stack([jnp.stack([jnp.sum(power(x)), jnp.sum(power(y))]) for x, y in pairs])

    def conclude(facts: Facts, state: Any, sums: jax.Array) -> jax.Array:
        sizes = jnp.sqrt(sums) if rescale == "l2" else sums
        was, now = sizes[:, 0], sizes[:, 1]
        small = (was < 1e-7) | (now < 1e-7)
        return jnp.where(small, 1, was / jnp.where(small, 1, now))

    def apply(stack: Stack, facts: Facts, state: Any, carry: Any) -> tuple[Stack, Any]:
        dropped = bare.apply(stack, ()).values
        return mapped(stack, [x * r for x, r in zip(dropped, state, strict=True)]), carry

    return Sliced(apply, (Measure(take, conclude),), rows=True)
