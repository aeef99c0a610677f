"""Leaves: one array, PRNG key or plain value of a tree, with its spec."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vcjax import errors
from vcjax.tree import dtypes
from vcjax.tree.lazy import Excerpt, LazyArray
from vcjax.tree.spec import LeafSpec

PYTHON_TYPES = (bool, int, float, complex, str, bytes)
"""The types of plain Python values that may be leaves; subclasses are not among them."""


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A leaf with its data in memory.

    Compared by identity: comparing content is the business of digests.

    Attributes:
        spec: what the leaf is.
        data: the `jax.Array` (of a typed PRNG key its `jax.random.key_data`),
            the `np.ndarray` or NumPy scalar, the Python value, or a `LazyArray`.
    """

    spec: LeafSpec
    data: Any

    @property
    def is_lazy(self) -> bool:
        """Whether the data are a `LazyArray`."""
        return isinstance(self.data, LazyArray)


def make_leaf(value: PyTree, path: str = "", variable: str | None = None) -> Leaf:
    """The leaf for one value of a tree. Nothing is copied or moved between devices.

    Args:
        value: an array, a typed PRNG key or a plain Python value.
        path: leaf path, for error messages.
        variable: type name of the `nnx.Variable` that holds it.

    Raises:
        UnsupportedLeafError: a value of this kind cannot be stored.
    """
    if isinstance(value, np.str_ | np.bytes_):
        value = value.item()  # the same text and hash; an array of it has no canonical bytes
    if type(value) in PYTHON_TYPES:
        return Leaf(LeafSpec(type(value).__name__, (), "python", variable), value)
    _refuse(value, path)
    if isinstance(value, jax.Array):
        return _jax_leaf(value, path, variable)
    try:
        name = dtypes.dtype_name(value.dtype)
    except errors.UnsupportedLeafError as error:
        raise errors.UnsupportedLeafError(
            f"leaf {path!r}: {error.message}", hint=error.hint, path=path
        ) from None
    home = "scalar" if isinstance(value, np.generic) else "numpy"
    return Leaf(LeafSpec(name, value.shape, home, variable), value)


def _jax_leaf(value: jax.Array, path: str, variable: str | None) -> Leaf:
    if not jnp.issubdtype(value.dtype, jax.dtypes.extended):
        name = dtypes.dtype_name(value.dtype)
        return Leaf(LeafSpec(name, value.shape, "jax", variable), value)
    name = key_dtype(value.dtype)
    if name is None:
        raise errors.UnsupportedLeafError(
            f"leaf {path!r} is an array of dtype {value.dtype}, which cannot be stored by name",
            hint="register the PRNG implementation under a name, or store jax.random.key_data",
            path=path,
        )
    data = jax.random.key_data(value)
    return Leaf(LeafSpec(name, data.shape, "jax", variable), data)


@lru_cache  # tracing takes 0.5 ms, and a tree may hold hundreds of keys
def key_dtype(dtype: DTypeLike) -> str | None:
    """ "key<IMPL>" for the dtype of typed PRNG keys; None for all other dtypes."""
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return None
    found = []

    def probe(keys: jax.Array) -> jax.Array:
        found.append(jax.random.key_impl(keys))
        return jax.random.key_data(keys)

    # The dtype itself only tells a short tag ("key<fry>"), and key_impl takes no abstract keys.
    jax.eval_shape(probe, jax.ShapeDtypeStruct((), dtype))
    return f"key<{found[0]}>" if isinstance(found[0], str) else None


def _refuse(value: object, path: str) -> None:
    """Raises if `value` is neither a usable JAX array, a NumPy array nor a NumPy scalar."""
    problem = _problem(value)
    if problem:
        what, hint = problem
        raise errors.UnsupportedLeafError(f"leaf {path!r} is {what}", hint=hint, path=path)


def _problem(value: object) -> tuple[str, str] | None:
    """What `value` is and what to do about it, or None if its data can be read."""
    if isinstance(value, jax.core.Tracer):
        return "a tracer: it has no value yet", "commit outside of jax.jit, grad and vmap"
    if isinstance(value, jax.Array):
        return _array_problem(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, jax.ShapeDtypeStruct):
        return (
            "a jax.ShapeDtypeStruct, which has no data",
            "commit real arrays; abstract trees serve as `like=` when restoring",
        )
    if isinstance(value, jax.Ref):
        return "a mutable jax.Ref", "commit its present value, `ref[...]`"
    if isinstance(value, np.generic) or type(value) in (np.ndarray, np.memmap, LazyArray):
        return None
    if isinstance(value, np.ndarray):
        return f"a {kind}, of which only the data could be kept", "use `np.asarray(x)`"
    if isinstance(value, PYTHON_TYPES):
        base = next(t for t in PYTHON_TYPES if isinstance(value, t)).__name__
        return f"a {kind}, a subclass of {base}", f"store the plain value, `{base}(x)` or `x.value`"
    if callable(value):
        return (
            f"a function or class ({kind})",
            "make the field static (`flax.struct.field(pytree_node=False)`, `eqx.field("
            "static=True)`), or commit only the arrays (`eqx.filter(tree, eqx.is_array)`)",
        )
    return (
        f"a {kind}, neither an array nor a plain value",
        "convert it to arrays, numbers or text, register its class with jax.tree_util, "
        "or leave it out",
    )


def _array_problem(value: jax.Array) -> tuple[str, str] | None:
    if value.is_deleted():
        return (
            "a deleted jax.Array: its buffer was donated",
            "commit before the call with donate_argnums, or commit that call's result",
        )
    return None


def refuse_spanning(leaf: Leaf, path: str) -> None:
    """Raises if this process cannot reach all of an array's data.

    Raises:
        UnsupportedLeafError: some shards are on other processes alone.
    """
    if is_spanning(leaf.data) and not leaf.data.is_fully_replicated:
        raise errors.UnsupportedLeafError(
            f"leaf {path!r} is a jax.Array with shards on other processes",
            hint="gather it first: `multihost_utils.process_allgather(x, tiled=True)`; "
            "Repository.commit, called on every process, takes it as it is",
            path=path,
        )


def is_spanning(data: object) -> bool:
    """Whether the data of a leaf are a `jax.Array` on the devices of several processes."""
    return isinstance(data, jax.Array) and not data.is_fully_addressable


def host_array(leaf: Leaf) -> np.ndarray:
    """The data of an array leaf as a native NumPy array of `leaf.spec`'s storage dtype.

    A view wherever there can be one; strides are as they are.
    """
    array = np.asarray(leaf.data)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def canonical(leaf: Leaf, region: tuple[slice, ...] | None = None) -> np.ndarray:
    """A C-contiguous, little-endian host array whose bytes are the leaf's canonical bytes.

    Shares memory with the leaf's data where that is on the host, contiguous and
    little-endian already, save for dtypes of less than a byte (see `dtypes`).
    May be read-only.

    Args:
        leaf: an array leaf.
        region: of a leaf on an accelerator only this is transferred; by default all.

    Raises:
        TypeError: the leaf is a Python value; its digest is taken of the value itself.
    """
    if leaf.spec.is_value:
        raise TypeError(f"a Python {leaf.spec.dtype} has no canonical bytes")
    array = _fetched(leaf.data, region)
    if array.dtype.isbuiltin == 1 or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    # np.ascontiguousarray would turn 0-d into 1-d.
    return dtypes.normalise(np.asarray(array, order="C"))


def _fetched(
    data: jax.Array | np.ndarray | np.generic | LazyArray | Excerpt,
    region: tuple[slice, ...] | None,
) -> np.ndarray:
    """The data, or a region of them, in host memory."""
    if isinstance(data, Excerpt):
        return data.part(region)
    if region is None:
        return np.asarray(data)
    sizes = tuple(part.stop - part.start for part in region)
    if sizes == data.shape or not is_remote(data):
        return np.asarray(data)[region]
    return np.asarray(_slice(data, tuple(part.start for part in region), sizes))


# The starts are traced: a leaf's chunks share one compilation.
_slice = jax.jit(jax.lax.dynamic_slice, static_argnums=2)


def is_remote(data: object) -> bool:
    """Whether the data of a leaf are in the memory of an accelerator, or of several devices."""
    if not isinstance(data, jax.Array):
        return False
    devices = data.devices()
    return len(devices) > 1 or any(device.platform != "cpu" for device in devices)
