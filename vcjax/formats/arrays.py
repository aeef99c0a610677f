"""PyTrees of arrays -> {name: array}, for formats that hold nothing but named arrays."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vcjax import errors
from vcjax.tree import spec

ML_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in vars(ml_dtypes).items()
    if isinstance(kind, type) and issubclass(kind, np.generic)
}
"""The dtypes that ml_dtypes adds to NumPy, by name: "bfloat16", "float8_e4m3fn", "int4", …"""


def is_array(leaf: Any) -> bool:
    """Whether `leaf` is an array or a NumPy scalar (also a `jax.Array` or an `nnx.Variable`)."""
    return isinstance(leaf, np.ndarray | np.generic) or all(
        hasattr(leaf, name) for name in ("shape", "dtype", "__array__")
    )


def host_array(leaf: Any, path: str) -> np.ndarray:
    """A leaf as a C-contiguous array in host memory and native byte order.

    Nothing is copied where `leaf` already is one.

    Args:
        leaf: something for which `is_array` holds.
        path: its leaf path, for messages.

    Raises:
        FormatError: a typed PRNG key, an array of objects, a masked array, or an
            array whose data cannot be had (donated, or on other processes).
    """
    if not isinstance(leaf.dtype, np.dtype):
        raise errors.FormatError(
            f"leaf {path!r} has dtype {leaf.dtype}, which no checkpoint file format can hold",
            path=path,
            hint="store `jax.random.key_data(key)` instead, or leave the leaf out",
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise errors.FormatError(
            f"leaf {path!r} is a masked array, and its mask would be lost",
            path=path,
            hint="call `.filled()`, or store the data and the mask as two leaves",
        )
    try:
        array = np.asarray(leaf)
    except RuntimeError as error:
        raise errors.FormatError(
            f"the data of leaf {path!r} cannot be read: {error}",
            path=path,
            hint="gather it first (jax.experimental.multihost_utils.process_allgather), "
            "and write before its buffer is donated",
        ) from error
    if array.dtype.hasobject:
        raise errors.FormatError(
            f"leaf {path!r} is an array of Python objects; only pickle could store it",
            path=path,
            hint="convert it to a numeric dtype with `.astype`",
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.asarray(array, order="C")


def named_arrays(
    tree: Any, separator: str, format_name: str, escape: Callable[[Any], str] = str
) -> dict[str, np.ndarray]:
    """The arrays of a tree by name, sorted by name.

    The names of a flat dict are kept as they are. In a nested tree (dicts, lists,
    tuples, `TrainState`, `nnx.State`, …) the keys on the way to a leaf are
    escaped and joined. Containers without leaves leave no trace.

    Args:
        tree: a PyTree of arrays.
        separator: joins the keys of a nested leaf.
        format_name: for messages.
        escape: applied to every key of a nested leaf, so that joining is unambiguous.

    Raises:
        FormatError: a leaf is not an array, or two leaves get the same name.
    """
    named: dict[str, tuple[str, np.ndarray]] = {}
    for keys, leaf in _leaves(tree, ()):
        path = "/".join(spec.escape(key) for key in keys)
        if not keys:
            raise errors.FormatError(
                f"a {format_name} file holds named arrays, but the tree is a single leaf",
                path=path,
                hint='give it a name: {"name": leaf}',
            )
        if not is_array(leaf):
            raise errors.FormatError(
                f"leaf {path!r} is {_described(leaf)}; a {format_name} file holds only arrays",
                path=path,
                hint="convert it with np.asarray, or write a .msgpack file, "
                "which holds plain Python values too",
            )
        name = str(keys[0]) if len(keys) == 1 else separator.join(map(escape, keys))
        if name in named:
            raise errors.FormatError(
                f"the leaves {named[name][0]!r} and {path!r} would both be named {name!r}",
                path=path,
                hint="rename one of them, or write a .msgpack file, which keeps the nesting",
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise errors.FormatError(
                f"the leaf name {name!r} is not valid Unicode", path=path, hint="rename the leaf"
            ) from error
        named[name] = (path, host_array(leaf, path))
    return {name: array for name, (_, array) in sorted(named.items())}


def _described(leaf: Any) -> str:
    return "None" if leaf is None else f"of type {type(leaf).__qualname__}"


def _leaves(node: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    children = None if is_array(node) else _children(node)
    if children is None:
        yield keys, node
        return
    for key, child in children:
        yield from _leaves(child, (*keys, key))


def _children(node: Any) -> list[tuple[Any, Any]] | None:
    """The (key, child) pairs of a container; None for a leaf."""
    if isinstance(node, Mapping):
        return list(node.items())
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    # A class can only be a registered PyTree if JAX is loaded; reading needs no JAX.
    jax = sys.modules.get("jax")
    if node is None or jax is None:
        return None
    pairs, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    if len(pairs) == 1 and pairs[0][1] is node:
        return None
    return [(jax.tree_util.keystr(key, simple=True), child) for key, child in pairs]
