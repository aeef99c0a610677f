"""Keeping the largest magnitudes of a leaf."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vcjax.merging.kernels.host_counts import Quota, Ties, nth_digit
from vcjax.merging.kernels.random_bits import flat_index
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
from vcjax.merging.makers import checked, chosen, transform
from vcjax.merging.method import Stack, Transform
from vcjax.merging.shapes import Coefficients, Place, Totals
from vcjax.merging.steps.basic import keep_where, mapped
from vcjax.merging.steps.sliced import Measure, Sliced

DIGIT = 16


@transform("density")
def trim(density: Coefficients, tie_rule: str = "exact", rounding: str = "ceil") -> Transform:
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

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
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

    slices = functools.partial(_trim_slices, density, tie_rule, rounding)
    return Transform(apply, per_model=True, slices=slices)


class Kept(NamedTuple):
    """How many elements are kept: a number, or one for each model."""

    k: np.ndarray | jax.Array

    def of(self, model: Place) -> np.ndarray | jax.Array:
        """That of one model."""
        return self.k if self.k.ndim == 0 else self.k[model]


def _trim_slices(
    density: Coefficients, tie_rule: str, rounding: str, dtype: np.dtype
) -> Sliced | None:
    if not isinstance(density, (int, float, tuple)):
        return None
    if not isinstance(density, tuple) and density >= 1:
        return Sliced(lambda stack, facts, state, carry: (stack, carry))

    def apply(stack: Stack, facts: Kept, state: Threshold, carry: Ties) -> tuple[Stack, PyTree]:
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

        def take(stack: Stack, facts: Kept, state: PyTree) -> jax.Array:
            prefix = state.key if number else jnp.zeros(len(stack.values), kind)
            pairs = zip(stack.values, prefix, strict=True)
            return jnp.stack([histogram(magnitude_keys(x), shift, p) for x, p in pairs])

        def pick(stack: Stack, facts: Kept, state: PyTree) -> list[tuple[jax.Array, jax.Array]]:
            keys = [magnitude_keys(x) >> np.array(shift, kind) for x in stack.values]
            pairs = zip(keys, state.key, strict=True)
            return [(k >> DIGIT == p, k.astype(np.uint16)) for k, p in pairs]

        def conclude(facts: Kept, state: PyTree, sums: np.ndarray) -> Threshold:
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
