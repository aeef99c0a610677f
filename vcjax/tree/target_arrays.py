"""One stored leaf -> the type, dtype and sharding of one target."""

from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, Sharding, SingleDeviceSharding
from jaxtyping import PyTree

from vcjax import errors
from vcjax.tree import dtypes
from vcjax.tree.fit import mismatch, target_spec
from vcjax.tree.leaf import Leaf, host_array, key_dtype
from vcjax.tree.spec import LeafSpec
from vcjax.tree.unflattening import wrap_key


def place(leaf: Leaf, target: PyTree, path: str = "") -> Any:
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
        return keys if sharding is None else _put(keys, sharding)
    return _to_device(data, sharding)


Box = tuple[tuple[int, int], ...]
"""A part of an array: (start, stop) along each axis."""


def own_boxes(target: PyTree, path: str = "") -> list[Box] | None:
    """The distinct parts of a target that devices of this process are to hold.

    None where those are all of it, so that `place` serves.
    """
    sharding = _spanning(target, path)
    if sharding is None or key_dtype(target.dtype) is not None:
        return None
    indices = sharding.addressable_devices_indices_map(target.shape).values()
    return list(dict.fromkeys(_box(index, target.shape) for index in indices))


def spans_processes(target: PyTree, path: str = "") -> bool:
    """Whether a target lies on the devices of several processes."""
    return _spanning(target, path) is not None


def _spanning(target: PyTree, path: str) -> Sharding | None:
    sharding = _sharding(target, path)
    return None if sharding is None or sharding.is_fully_addressable else sharding


def _box(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    assert index is not None, "devices of this process hold a part each"
    return tuple(part.indices(length)[:2] for part, length in zip(index, shape, strict=True))


def place_boxes(
    spec: LeafSpec, boxes: dict[Box, np.ndarray], target: PyTree, path: str = ""
) -> jax.Array:
    """A leaf as `target` is, from the parts of it that this process is to hold.

    Args:
        spec: of the stored leaf.
        boxes: content of each of `own_boxes`, of the storage dtype.
        target: one of `Template.targets`.
        path: leaf path, for error messages.

    Raises:
        StructureError: the leaf does not fit.
    """
    if reason := mismatch(spec, target):
        raise errors.StructureError("a leaf does not fit like=", problems=[f"{path}: {reason}"])
    sharding, dtype = _sharding(target, path), np.dtype(target.dtype)
    assert sharding is not None
    shards, used = [], set()
    with jax.enable_x64(True) if _is_cut(dtype) else nullcontext():
        for device, index in sharding.addressable_devices_indices_map(target.shape).items():
            box = _box(index, target.shape)
            data = _cast(Leaf(spec, boxes[box]), dtype)
            # JAX on CPU takes the buffer over, and two devices must not share one.
            data = data.copy() if box in used else data
            used.add(box)
            where = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            shards.append(jax.device_put(data, where))
        return jax.make_array_from_single_device_arrays(target.shape, sharding, shards, dtype=dtype)


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


def _sharding(target: PyTree, path: str) -> Sharding | None:
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


def _to_device(data: np.ndarray | jax.Array, sharding: Sharding | None) -> jax.Array:
    # The target may have 64 bits; then cutting to 32 as the present setting would is wrong.
    with jax.enable_x64(True) if _is_cut(data.dtype) else nullcontext():
        return _put(data, sharding)


def _is_cut(dtype: np.dtype) -> bool:
    return jax.dtypes.canonicalize_dtype(dtype) != dtype


def _put(data: np.ndarray | jax.Array, sharding: Sharding | None) -> jax.Array:
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(data, sharding)
    # device_put would have all processes compare their data, by a collective for each leaf.
    return jax.make_array_from_callback(
        data.shape, sharding, lambda index: data[index], dtype=data.dtype
    )
