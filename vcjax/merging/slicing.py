"""Methods on slices of leaves, so that no leaf need be in memory whole.

Steps that treat every element alone run on any slice. Of the others, those in
`SLICED` say how they do it: by measures (histograms, inner products) that add up
over slices, conclusions drawn from the sums, and what is then done to a slice.
Slices of a leaf are visited in order, once per measure and once to merge.

A slice is a flat piece of the leaf in C order; where random numbers or ranks in a
row are asked for, it is some of its rows. The last one is padded with zeros,
which change no sum, and are the last among equal magnitudes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcjax.merging import gram as g
from vcjax.merging.agreement import energy_weights, erase_minority
from vcjax.merging.atoms import drop, keep_where, mapped, merged
from vcjax.merging.counter import flat_index
from vcjax.merging.dropping import drop_by_rank
from vcjax.merging.geodesic import (
    arc_coefficients,
    spherical_coefficients,
    stock_share,
    weighted_arc_coefficients,
)
from vcjax.merging.method import Stack, Transform
from vcjax.merging.picking import Quota, Ties, nth_digit
from vcjax.merging.selection import (
    Threshold,
    count,
    histogram,
    keep_mask,
    magnitude_keys,
    number_set,
)

Facts = Any
"""Numbers that follow from the size of the leaf alone."""

DIGIT = 16


class Measure(NamedTuple):
    """One pass over the slices of a leaf.

    Attributes:
        take: (stack, facts, state) -> numbers, which are summed over the slices.
        conclude: (facts, state, sums) -> the next state.
        on_host: whether that is for NumPy, and not to be jitted.
        pick: (stack, facts, state) -> for each model a mask of what a histogram counts, and
            digits below 2^16: what `take` gives, as the host makes it (`Picks`).
    """

    take: Callable[[Stack, Facts, Any], Any]
    conclude: Callable[[Facts, Any, Any], Any]
    on_host: bool = False
    pick: Callable[[Stack, Facts, Any], Any] | None = None


def _nothing(size: int) -> Facts:
    return ()


def _no_carry(models: int) -> Any:
    return ()


class Sliced(NamedTuple):
    """How a step works on slices.

    Attributes:
        apply: (stack, facts, state, carry) -> (stack, carry).
        measures: passes that come before, each with the state of the one before it.
        facts: from the size of the leaf.
        carry: what goes from one slice to the next, before the first.
        rows: whether slices must be whole rows.
        axes: fewest axes of a leaf; one of fewer must be seen whole.
        quota: (facts, state) -> what of the last measure's picks is kept.
    """

    apply: Callable[[Stack, Facts, Any, Any], tuple[Stack, Any]]
    measures: tuple[Measure, ...] = ()
    facts: Callable[[int], Facts] = _nothing
    carry: Callable[[int], Any] = _no_carry
    rows: bool = False
    axes: int = 1
    quota: Callable[[Facts, Any], Quota] | None = None


SLICED: dict[str, Callable[..., Sliced | None]] = {}
"""{name of a step: its parameters and the computation's dtype -> how, or None if it cannot}."""


def _on_slices(name: str) -> Callable[[Callable[..., Sliced | None]], Callable[..., Sliced | None]]:
    def register(make: Callable[..., Sliced | None]) -> Callable[..., Sliced | None]:
        SLICED[name] = make
        return make

    return register


def sliced(step: Transform, dtype: Any = np.float32) -> Sliced | None:
    """How a step works on slices; None if it must see the leaf.

    Args:
        step: a step of a method.
        dtype: of the computation.
    """
    if step.rounds:
        return None
    if step.name in SLICED:
        return SLICED[step.name](np.dtype(dtype), **step.parameters)
    if step.locality != "element":
        return None
    return Sliced(_plain(step), rows=step.random)


def _plain(step: Transform) -> Callable[[Stack, Facts, Any, Any], tuple[Stack, Any]]:
    return lambda stack, facts, state, carry: (step.apply(stack, ()), carry)


# -- steps -------------------------------------------------------------------------


class Kept(NamedTuple):
    """How many elements are kept: a number, or one for each model."""

    k: Any

    def of(self, model: Any) -> Any:
        """That of one model."""
        return self.k if self.k.ndim == 0 else self.k[model]


@_on_slices("trim")
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


@_on_slices("drop")
def _drop(dtype: np.dtype, density: Any, rescale: str | None) -> Sliced | None:
    if rescale in ("density", None):
        return Sliced(_plain(drop(density, rescale)), rows=True)
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


class Size(NamedTuple):
    """How many elements the leaf has."""

    n: Any


@_on_slices("select_calculate_erase")
def _select_calculate_erase(dtype: np.dtype, select_topk: Any, least: float) -> Sliced | None:
    if not isinstance(select_topk, (int, float)) or select_topk < 1:
        return None

    def take(stack: Stack, facts: Size, state: Any) -> jax.Array:
        return jnp.stack([g.inner(x, x) for x in stack.values])

    def conclude(facts: Size, state: Any, sums: jax.Array) -> jax.Array:
        return energy_weights(sums / facts.n, least)

    def apply(stack: Stack, facts: Size, state: Any, carry: Any) -> tuple[Stack, Any]:
        return merged(stack, erase_minority(stack.values, state)), carry

    return Sliced(apply, (Measure(take, conclude),), lambda size: Size(np.float32(size)))


@_on_slices("drop_by_rank")
def _drop_by_rank(
    dtype: np.dtype, density: Any, epsilon: Any, rescale: str | None, axis: int
) -> Sliced | None:
    if axis != -1 or rescale not in ("probability", None):
        return None
    # A leaf of one axis is a single row.
    return Sliced(_plain(drop_by_rank(density, epsilon, rescale, axis)), rows=True, axes=2)


def _by_gram(coefficients: Callable[[jax.Array, jax.Array], jax.Array]) -> Sliced:
    """A step that is a linear combination, with coefficients of Gram matrix and weights.

    The weights are those of the models, which every slice has; so the state is the
    Gram matrix, and its few numbers are worked on again for each slice.
    """

    def apply(stack: Stack, facts: Facts, state: Any, carry: Any) -> tuple[Stack, Any]:
        return merged(stack, g.combine(coefficients(state, stack.weights), stack.values)), carry

    measure = Measure(
        lambda stack, facts, state: g.gram(stack.values), lambda facts, state, sums: sums
    )
    return Sliced(apply, (measure,))


@_on_slices("arc")
def _arc(dtype: np.dtype, t: Any, threshold: float) -> Sliced | None:
    return _by_gram(lambda products, weights: arc_coefficients(products, weights, t, threshold))


@_on_slices("weighted_arc")
def _weighted_arc(dtype: np.dtype, flatten: bool, row_wise: bool) -> Sliced | None:
    return _by_gram(weighted_arc_coefficients) if flatten else None


@_on_slices("spherical_mean")
def _spherical_mean(
    dtype: np.dtype, iterations: int, tol: float, normalize: bool, eps: float
) -> Sliced | None:
    return _by_gram(
        lambda products, weights: spherical_coefficients(
            products, weights, iterations, tol, normalize, eps
        )
    )


@_on_slices("stock_ratio")
def _stock_ratio(dtype: np.dtype, average: str, axis: int | None, eps: float) -> Sliced | None:
    if axis is not None:
        return None

    def coefficients(products: jax.Array, weights: jax.Array) -> jax.Array:
        models = products.shape[0]
        return jnp.broadcast_to(stock_share(products, average, eps) / models, (models,))

    return _by_gram(coefficients)
