"""What a restore asks of one leaf, in all the ways that Orbax lets callers say it."""

from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.layout import Format
from jax.sharding import NamedSharding, Sharding
from jax.typing import DTypeLike
from orbax.checkpoint import metadata as ocp_metadata
from orbax.checkpoint import type_handlers

from vcjax import tree
from vcjax.tree import Leaf, LeafSpec

_PLAIN: dict[type, bool | int | float | complex | str | bytes] = {
    kind: kind() for kind in (int, float, bool, complex, str, bytes)
}
_TEXT = ("str", "bytes")

Target: TypeAlias = object
"""A leaf that says what another one is to become: concrete, or abstract with shape and dtype."""


@dataclass(frozen=True)
class Wanted:
    """What a leaf is to become. Whatever is None stays as it was stored.

    Attributes:
        kind: `jax.Array`, `np.ndarray`, `np.generic` or a plain Python type.
        dtype: to cast to.
        shape: that it must have.
        sharding: where to put it.
        strict: whether another stored shape is an error; if not, it is cut and padded with
            zeros at the end of each axis.
        fallback: where to put it if the recorded sharding has devices that are not here.
        target: a leaf that says it all and knows more (a typed PRNG key, a `jax.Array` on
            the default device); goes before the rest.
    """

    kind: type | None = None
    dtype: DTypeLike | None = None
    shape: tuple[int, ...] | None = None
    sharding: Sharding | None = None
    strict: bool = True
    fallback: Sharding | None = None
    target: Target | None = None


def from_restore_args(args: ocp.RestoreArgs | None) -> Wanted:
    """What Orbax's `RestoreArgs` or `ArrayRestoreArgs` ask for."""
    if args is None:
        return Wanted()
    if not isinstance(args, type_handlers.ArrayRestoreArgs):
        return Wanted(kind=args.restore_type, dtype=args.dtype)
    sharding = args.sharding
    if sharding is None and args.mesh is not None:
        sharding = NamedSharding(args.mesh, args.mesh_axes or jax.sharding.PartitionSpec())
    return Wanted(
        kind=jax.Array if args.restore_type is None else args.restore_type,
        dtype=args.dtype,
        shape=None if args.global_shape is None else tuple(args.global_shape),
        sharding=_as_sharding(sharding),
        strict=args.strict,
    )


def from_target(value: Target, strict: bool = True) -> Wanted:
    """What a leaf of the tree given to `StandardRestore` asks for.

    As in Orbax a `jax.ShapeDtypeStruct` without a sharding gets the one that was saved;
    where there was none because the leaf was a NumPy array, it becomes one again.
    """
    if isinstance(value, ocp_metadata.StringMetadata):
        return Wanted(kind=str)
    if isinstance(value, ocp_metadata.ScalarMetadata):
        return Wanted(kind=type(np.zeros((), value.dtype).item()), dtype=value.dtype)
    if isinstance(value, ocp_metadata.ArrayMetadata):
        if value.sharding is None:
            return Wanted(np.ndarray, value.dtype, tuple(value.shape), strict=strict)
        sharding = _as_sharding(value.sharding)
        return Wanted(jax.Array, value.dtype, tuple(value.shape), sharding, strict)
    if isinstance(value, jax.ShapeDtypeStruct):
        if jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return Wanted(target=value)
        kind = None if value.sharding is None else jax.Array
        return Wanted(kind, value.dtype, tuple(value.shape), value.sharding, strict)
    if isinstance(value, jax.Array | np.ndarray) and not strict:
        kind = jax.Array if isinstance(value, jax.Array) else np.ndarray
        sharding = value.sharding if isinstance(value, jax.Array) and value.committed else None
        return Wanted(kind, value.dtype, value.shape, sharding, strict)
    return Wanted(target=value)


def _as_sharding(
    sharding: Sharding | Format | ocp_metadata.ShardingMetadata | None,
) -> Sharding | None:
    """A JAX sharding for Orbax's description of one, or for a layout with one."""
    if isinstance(sharding, ocp_metadata.ShardingMetadata):
        return sharding.to_jax_sharding()
    if sharding is None or isinstance(sharding, Sharding):
        return sharding
    return cast(Sharding, getattr(sharding, "sharding", sharding))


def resolve(
    wanted: Wanted, spec: LeafSpec, recorded: ocp_metadata.ShardingMetadata | None = None
) -> Target | None:
    """A target for `vcjax.tree.place`; None to restore the leaf as it was stored.

    Args:
        spec: of the stored leaf.
        recorded: the sharding it had, as Orbax describes it.
    """
    if wanted.target is not None:
        return wanted.target
    is_key = tree.key_impl(spec.dtype) is not None
    kind = wanted.kind if wanted.kind is not None else _home(spec)
    if kind is None and wanted.shape is not None:
        kind = np.ndarray  # a Python number where an array without a sharding is asked for
    sharding = wanted.sharding
    if sharding is None and recorded is not None and kind is jax.Array and not is_key:
        sharding = _available(recorded) or wanted.fallback
    if is_key:
        return None if sharding is None else _key_target(spec, sharding)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if spec.is_value and wanted.kind is None and wanted.shape is None:
        if wanted.dtype is None or spec.dtype in _TEXT:
            return None
        return _PLAIN[type(np.zeros((), wanted.dtype).item())]
    dtype = np.dtype(wanted.dtype if wanted.dtype is not None else _dtype(spec))
    shape = spec.shape if wanted.shape is None else wanted.shape
    if kind is np.generic and not shape:
        return np.zeros((), dtype)[()]
    if kind is np.ndarray or kind is np.generic:
        return np.broadcast_to(np.zeros((), dtype), shape)  # takes no memory
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _home(spec: LeafSpec) -> type | None:
    return {"jax": jax.Array, "numpy": np.ndarray, "scalar": np.generic}.get(spec.home)


def _dtype(spec: LeafSpec) -> np.dtype:
    if spec.is_value:
        return np.asarray(_PLAIN[{t.__name__: t for t in _PLAIN}[spec.dtype]]).dtype
    return tree.storage_dtype(spec.dtype)


def _available(recorded: ocp_metadata.ShardingMetadata) -> Sharding | None:
    """The recorded sharding, if this process has its devices; else the default device will do."""
    try:
        return recorded.to_jax_sharding()
    except ValueError:
        return None


def _key_target(spec: LeafSpec, sharding: Sharding) -> jax.ShapeDtypeStruct:
    keys = jax.eval_shape(
        lambda words: jax.random.wrap_key_data(words, impl=tree.key_impl(spec.dtype)),
        jax.ShapeDtypeStruct(spec.shape, np.uint32),
    )
    return jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding)


def adjusted(spec: LeafSpec, target: Target, strict: bool) -> LeafSpec:
    """The spec that `fit` gives a leaf: as near to the target as Orbax casts and pads."""
    goal = tree.target_spec(target)
    if goal is None or spec.dtype in _TEXT or goal.dtype in _TEXT:
        return spec
    if tree.key_impl(spec.dtype) is not None or tree.key_impl(goal.dtype) is not None:
        return spec
    if tree.rank(spec.dtype) == 3 and tree.rank(goal.dtype) < 3:
        return spec  # the imaginary parts would be lost
    padded = not strict and len(spec.shape) == len(goal.shape)
    if spec.shape != goal.shape and not padded:
        return spec  # the error is to tell what is stored
    if goal.is_value:
        dtype = goal.dtype if spec.is_value else _dtype(goal).name
        return replace(spec, dtype=dtype)
    home = "numpy" if spec.is_value and spec.dtype != goal.dtype else spec.home
    return replace(spec, dtype=goal.dtype, shape=goal.shape, home=home)


def fit(leaf: Leaf, spec: LeafSpec) -> Leaf:
    """The leaf with the dtype and shape of an adjusted spec."""
    if leaf.spec == spec:
        return leaf
    if spec.is_value:
        return Leaf(spec, type(_PLAIN[{t.__name__: t for t in _PLAIN}[spec.dtype]])(leaf.data))
    array = np.asarray(leaf.data)
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(tree.storage_dtype(spec.dtype))
    if array.shape != spec.shape:
        padded = np.zeros(spec.shape, array.dtype)
        common = tuple(
            slice(min(old, new)) for old, new in zip(array.shape, spec.shape, strict=True)
        )
        padded[common] = array[common]
        array = padded
    return Leaf(spec, array)
