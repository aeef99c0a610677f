"""Leaves on meshes of explicit axes (JAX's "sharding in types").

There, scatters, reshapes and factorisations must be told how their results are
sharded. Merging leaves that to the compiler, as it is on other meshes.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

P = ParamSpec("P")
R = TypeVar("R")


def explicit(x: object) -> bool:
    """Whether an array is sharded over explicit axes."""
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return mesh is not None and AxisType.Explicit in mesh.axis_types


def on_any_mesh(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function to run with automatic axes.

    Results of the shape of the first explicitly sharded argument get its sharding;
    all others are replicated.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **static: P.kwargs) -> R:
        given = next((x for x in jax.tree.leaves(args) if explicit(x)), None)
        if given is None:
            return function(*args, **static)
        like = jax.typeof(given)
        bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), args)
        shapes = jax.eval_shape(functools.partial(function, **static), *bare)
        replicated = NamedSharding(like.sharding.mesh, PartitionSpec())
        shardings = jax.tree.map(
            lambda out: like.sharding if out.shape == like.shape else replicated, shapes
        )
        free: Any = jax.sharding.auto_axes(
            functools.partial(function, **static),
            axes=like.sharding.mesh.axis_names,
            out_sharding=shardings,
        )
        return free(*args)

    return wrapped
