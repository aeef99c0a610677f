"""`Node` tree of leaves -> PyTree, with nothing but what was stored to go by."""

import collections
import functools
import keyword
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict
from jaxtyping import PyTree

from vcjax import errors
from vcjax.tree import dtypes, flax
from vcjax.tree.leaf import Leaf, host_array
from vcjax.tree.names import find_class
from vcjax.tree.spec import Node


def unflatten(root: Node | Leaf) -> Any:
    """Puts a tree together again from `Node`s and `Leaf`s, without a `like=`.

    Containers come back as what they were, with these exceptions: a defaultdict
    has no factory; a namedtuple whose class is not imported becomes an equal
    `collections.namedtuple`; an nnx Module becomes its `nnx.State`, with
    Variables of their types if those are imported; any other node (TrainState,
    dataclasses) becomes a dict of its fields. Use `unflatten_like` for the rest,
    and for nnx Modules above all: `nnx.update` with such a State would clear the
    metadata of the Module's Variables, such as the tags of its PRNG streams.

    Arrays that were `jax.Array`s are put on the default device, uncommitted,
    save for 64-bit dtypes while `jax_enable_x64` is off: those stay NumPy, as
    JAX would cut them to 32 bits.

    Takes over the host buffers: the caller must not write to them any more,
    since JAX on CPU uses a suitably aligned buffer in place.

    Args:
        root: data of array leaves are NumPy (or JAX) arrays of the storage dtype.

    Raises:
        TreeError: a PRNG key of an implementation that JAX does not know here.
    """
    if not isinstance(root, Node):
        return _restore(root)
    children = tuple(unflatten(child) for child in root.children)
    build = _BUILDERS.get(root.kind)
    if build is None:
        raise errors.UnknownFormatError(
            f"unknown kind of tree node {root.kind!r}",
            hint="upgrade vcjax: a newer version wrote this",
        )
    return build(root, children)


def _restore(leaf: Leaf) -> Any:
    value = restore_leaf(leaf)
    return value if leaf.spec.variable is None else flax.make_variable(leaf.spec.variable, value)


def restore_leaf(leaf: Leaf) -> Any:
    """The value of one leaf, in the home it came from; see `unflatten`."""
    if leaf.spec.home == "python":
        return leaf.data
    if leaf.spec.home == "numpy":
        array = host_array(leaf)
        return array if array.flags.writeable else array.copy()
    if leaf.spec.home == "scalar":
        return host_array(leaf)[()]
    impl = dtypes.key_impl(leaf.spec.dtype)
    if impl is not None:
        return wrap_key(leaf.data, impl)
    if isinstance(leaf.data, jax.Array):
        return leaf.data
    array = host_array(leaf)
    # device_put would silently cut these to 32 bits.
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    return jax.device_put(array)


def wrap_key(data: np.ndarray | jax.Array, impl: str) -> jax.Array:
    """Typed PRNG keys from their uint32 words.

    Raises:
        TreeError: JAX knows no such implementation here.
    """
    try:
        return jax.random.wrap_key_data(jax.numpy.asarray(data), impl=impl)
    except ValueError as error:
        raise errors.TreeError(
            f"a PRNG key of the implementation {impl!r} cannot be restored: {error}",
            hint="import the package that registers this implementation first",
        ) from error


def _as_dict(node: Node, children: tuple[PyTree, ...]) -> dict[Any, Any]:
    return dict(zip(node.keys, children, strict=True))


def _namedtuple(node: Node, children: tuple[PyTree, ...]) -> Any:
    cls = find_class(node.name)
    if cls is None or not issubclass(cls, tuple) or getattr(cls, "_fields", None) != node.keys:
        cls = _namedtuple_class(node.name, tuple(map(str, node.keys)))
    # Not cls(…): a class may override __new__, and reading runs no code.
    return tuple.__new__(cls, children)


@functools.cache
def _namedtuple_class(name: str, fields: tuple[str, ...]) -> type:
    """Cached, as JAX takes trees of two classes for different ones."""
    typename = name.rpartition(":")[2].rpartition(".")[2]
    if not typename.isidentifier() or keyword.iskeyword(typename):
        typename = "NamedTuple"
    return collections.namedtuple(typename, fields, rename=True)


def _custom(node: Node, children: tuple[PyTree, ...]) -> Any:
    if node.keys == ("value",) and flax.find_variable_type(node.name):
        return flax.make_variable(node.name, children[0])
    return _as_dict(node, children)


_BUILDERS: dict[str, Callable[[Node, tuple[Any, ...]], Any]] = {
    "dict": _as_dict,
    "ordereddict": lambda node, children: collections.OrderedDict(_as_dict(node, children)),
    "defaultdict": lambda node, children: collections.defaultdict(None, _as_dict(node, children)),
    "frozendict": lambda node, children: FrozenDict(_as_dict(node, children)),
    "list": lambda node, children: list(children),
    "tuple": lambda node, children: children,
    "namedtuple": _namedtuple,
    "none": lambda node, children: None,
    "nnx_state": lambda node, children: flax.make_state(_as_dict(node, children)),
    "custom": _custom,
}
