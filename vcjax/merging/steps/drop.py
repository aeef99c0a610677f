"""Dropping elements at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from vcjax.merging.kernels.random_bits import bernoulli, random_bits
from vcjax.merging.makers import checked, chosen, transform
from vcjax.merging.method import Stack, Transform
from vcjax.merging.shapes import Coefficients, Share, Totals, Value
from vcjax.merging.steps.basic import keep_where, mapped
from vcjax.merging.steps.sliced import Facts, Measure, Sliced


def rescaled(before: Value, after: Value, norm: str) -> Value:
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
def drop(density: Coefficients, rescale: str | None = "density") -> Transform:
    r"""Keeps each element with probability `density`, and rescales what is left.

    Source: Yu et al., 2024 (DARE), §3.2: :math:`\hat τ = m ⊙ τ / density`.

    Args:
        density: probability of being kept; a tuple has one for each model.
        rescale: "density" divides by it (the paper, unbiased), "l1", "l2" and
            "linf" restore that norm of the leaf (mergekit: "l1"), None leaves it.
    """
    checked("density", density, 0, 1)
    chosen("rescale", rescale, "density", "l1", "l2", "linf", None)

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        kept = []
        for i, x in enumerate(stack.values):
            bits = random_bits(stack.seed, stack.model + i, x.shape, stack.row)
            share = density
            if isinstance(share, tuple):
                share = jnp.asarray(share, jnp.float32)[stack.model + i]
            masked = keep_where(bernoulli(bits, share), x)
            if rescale == "density":
                masked = masked / jnp.maximum(jnp.asarray(share, x.real.dtype), 1e-12)
            elif rescale is not None:
                masked = rescaled(x, masked, rescale)
            kept.append(masked.astype(x.dtype))
        return mapped(stack, kept)

    element = rescale in ("density", None)
    return Transform(
        apply,
        locality="element" if element else "leaf",
        per_model=True,
        random=True,
        linear=True,
        slices=None if element else functools.partial(_drop_slices, density, rescale),
    )


def _drop_slices(density: Coefficients, rescale: str, dtype: np.dtype) -> Sliced | None:
    if rescale == "linf":  # a largest value is no sum
        return None
    bare = drop(density, None)
    power = {"l1": jnp.abs, "l2": jnp.square}[rescale]

    def take(stack: Stack, facts: Facts, state: PyTree) -> Float[Array, "models 2"]:
        dropped = bare.apply(stack, ()).values
        pairs = zip(stack.values, dropped, strict=True)
        return jnp.stack([jnp.stack([jnp.sum(power(x)), jnp.sum(power(y))]) for x, y in pairs])

    def conclude(facts: Facts, state: PyTree, sums: Float[Array, "models 2"]) -> Share:
        sizes = jnp.sqrt(sums) if rescale == "l2" else sums
        was, now = sizes[:, 0], sizes[:, 1]
        small = (was < 1e-7) | (now < 1e-7)
        return jnp.where(small, 1, was / jnp.where(small, 1, now))

    def apply(stack: Stack, facts: Facts, state: PyTree, carry: PyTree) -> tuple[Stack, PyTree]:
        dropped = bare.apply(stack, ()).values
        return mapped(stack, [x * r for x, r in zip(dropped, state, strict=True)]), carry

    return Sliced(apply, (Measure(take, conclude),), rows=True)
