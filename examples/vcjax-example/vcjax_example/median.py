"""The merge method "median": robust where one of many models went astray."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from vcjax import merging


@merging.transform()
def middle_value() -> merging.Transform:
    """Of N models the median, element by element; a NaN of any model stays."""

    def apply(stack: merging.Stack, totals: tuple[Any, ...] = ()) -> merging.Stack:
        return dataclasses.replace(stack, values=(jnp.median(jnp.stack(stack.values), axis=0),))

    return merging.Transform(apply, locality="element")


@merging.recipe
def median() -> merging.MergeMethod:
    """The median of N models."""
    return merging.chain(middle_value())
