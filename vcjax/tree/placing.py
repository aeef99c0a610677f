"""One stored leaf -> the type, dtype and sharding of one target."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, Sharding

from vcjax import errors
from vcjax.tree import dtypes
from vcjax.tree.leaf import Leaf, host_array
from vcjax.tree.matching import mismatch, target_spec
from vcjax.tree.unflattening import wrap_key


def place(leaf: Leaf, target: Any, path: str = "") -> Any:
    """The leaf's value as `target` is: its type, its dtype and its sharding.

    Args:
        leaf: data as for `unflatten`.
        target: one of `Template.targets`.
        path: leaf path, for error messages.

    Raises:
        StructureError: the leaf does not fit.
    """
    wanted, reason = target_spec(target), mismatch(leaf.spec, target)
    if wanted is None or reason:
        raise errors.StructureError("a leaf does not fit like=", problems=[f"{path}: {reason}"])
    if wanted.home == "python":
        return _to_python(leaf, type(target))
    impl = dtypes.key_impl(wanted.dtype)
    dtype = np.dtype(np.uint32) if impl else np.dtype(target.dtype)
    try:
        data = _cast(leaf, dtype)
    except OverflowError:
        problem = f"{path}: stored {leaf.data!r} is out of the range of {dtype}"
        raise errors.StructureError("a leaf does not fit like=", problems=[problem]) from None
    if wanted.home == "scalar":
        return np.asarray(data)[()]
    if wanted.home == "numpy":
        array = np.asarray(data)
        return array if array.flags.writeable else array.copy()
    sharding = _sharding(target, path)
    if impl:
        keys = wrap_key(data, impl)
        return keys if sharding is None else jax.device_put(keys, sharding)
    return _to_device(data, sharding)


def _to_python(leaf: Leaf, cls: type) -> Any:
    value = leaf.data if leaf.spec.is_value else host_array(leaf)[()]
    return value if type(value) is cls else cls(value)


def _cast(leaf: Leaf, dtype: np.dtype) -> Any:
    """The data in another dtype; the very same data where it has that already."""
    if leaf.spec.is_value:
        # A Python float beyond float32 is infinite there, as in every other cast.
        with np.errstate(over="ignore"):
            return np.asarray(leaf.data, dtype)
    if leaf.data.dtype == dtype:
        return leaf.data
    with np.errstate(over="ignore", invalid="ignore"):
        return host_array(leaf).astype(dtype)


def _sharding(target: Any, path: str) -> Sharding | None:
    """Where to put the array; None for the default device, uncommitted."""
    if isinstance(target, jax.Array) and not target.committed:
        return None
    sharding = getattr(target, "sharding", None)
    if not (isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh)):
        return sharding
    mesh = jax.sharding.get_mesh()
    if mesh.abstract_mesh != sharding.mesh:
        raise errors.StructureError(
            "the sharding in like= has no devices",
            problems=[f"{path}: {sharding}"],
            hint="restore within `with jax.set_mesh(mesh):`, or give like= concrete shardings",
        )
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def _to_device(data: Any, sharding: Sharding | None) -> jax.Array:
    if jax.dtypes.canonicalize_dtype(data.dtype) == data.dtype:
        return jax.device_put(data, sharding)
    # The target has 64 bits, so cutting to 32 as the present setting would is wrong.
    with jax.enable_x64(True):
        return jax.device_put(data, sharding)
