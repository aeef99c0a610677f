"""PyTree -> `Node` tree of leaves.

JAX's own registry decides what is a node. It is asked one level at a time, so
that the kind of every container can be recorded; treedefs are never kept, as
those of `TrainState` and the like hold functions.
"""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.core import FrozenDict
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey
from jaxtyping import PyTree

from vcjax import errors
from vcjax.tree import flax
from vcjax.tree.leaf import PYTHON_TYPES, Leaf, make_leaf, refuse_spanning
from vcjax.tree.names import qualified_name
from vcjax.tree.spec import Key, Node, join, leaf_dict

_KEY_TYPES = (str, int, float, bool, bytes)

_MAPPINGS: dict[type, str] = {
    dict: "dict",
    defaultdict: "defaultdict",
    OrderedDict: "ordereddict",
    FrozenDict: "frozendict",
}


_LEAF_TYPES = frozenset((np.ndarray, *PYTHON_TYPES))


def flatten(tree: PyTree, *, spanning: bool = False) -> Node | Leaf:
    """Takes a PyTree apart. Data are neither copied nor moved.

    Nodes are whatever `jax.tree_util` takes for nodes, and None. An nnx Module,
    Optimizer or other graph node is recorded as its `nnx.state`, in which
    a Variable that is shared appears once.

    Not kept: weak types, static fields of custom nodes, the factory of
    a defaultdict and the metadata of nnx Variables.

    Args:
        tree: any PyTree; what this function gave is given back as it is.
        spanning: allow arrays with shards that only other processes can reach.

    Returns:
        `Node`s with a `Leaf` at each end, or one `Leaf` if the tree is a leaf.

    Raises:
        UnsupportedLeafError: a leaf that cannot be stored.
        TreeError: dict keys that cannot be stored or sorted, two equal leaf paths, or a
            container that holds itself.

    Example:
        >>> from vcjax.tree import flatten, leaf_dict
        >>> list(leaf_dict(flatten({"w": [1.5, 2], "b": None})))
        ['w/0', 'w/1']
    """
    try:
        root = tree if isinstance(tree, Node | Leaf) else _flatten(tree, None)
    except RecursionError as error:
        raise errors.TreeError(
            "the tree is too deep to be taken apart, or a container holds itself",
            hint="take out the container that leads back to itself",
        ) from error
    leaves = leaf_dict(root)  # raises if a path occurs twice
    if not spanning:
        for path, leaf in leaves.items():
            refuse_spanning(leaf, path)
    return root


def _flatten(tree: PyTree, path: str | None) -> Node | Leaf:
    if tree is None:
        return Node("none")
    if isinstance(tree, jax.Array) or type(tree) in _LEAF_TYPES:
        return make_leaf(tree, path or "")  # asking JAX's registry takes ten times as long
    if kind := _MAPPINGS.get(type(tree)):
        return _flatten_mapping(kind, tree, path)
    if flax.is_variable(tree):
        return _flatten_variable(tree, path)
    if flax.is_graph_node(tree):
        tree = flax.state(tree)
    if flax.is_state(tree):
        return _flatten_mapping("nnx_state", tree, path)
    return _flatten_registered(tree, path)


def _flatten_variable(variable: nnx.Variable, path: str | None) -> Node | Leaf:
    value, name = flax.variable_value(variable), flax.variable_type(variable)
    if flax.is_plain(value):
        return make_leaf(value, path or "", name)
    return Node("custom", ("value",), (_flatten(value, join(path, "value")),), name)


def _flatten_mapping(kind: str, tree: Mapping[Key, PyTree], path: str | None) -> Node:
    keys = [_check_key(key, path) for key in tree]
    if kind != "ordereddict":
        try:
            keys.sort()
        except TypeError:
            types = sorted({type(key).__name__ for key in keys})
            raise errors.TreeError(
                f"the keys of the {kind} at {path or ''!r} cannot be sorted: {', '.join(types)}",
                path=path or "",
                hint="use keys of one type, as JAX requires too",
            ) from None
    children = tuple(_flatten(tree[key], join(path, key)) for key in keys)
    return Node(kind, tuple(keys), children)


def _check_key(key: Any, path: str | None) -> Key:
    """Exact types only: an enum or a NumPy number would come back as something else."""
    if type(key) is tuple:
        for part in key:
            _check_key(part, path)
    elif type(key) not in _KEY_TYPES or (type(key) is float and math.isnan(key)):
        raise errors.TreeError(
            f"the dict at {path or ''!r} has the key {key!r} of type {type(key).__name__}, "
            "which cannot be stored",
            path=path or "",
            hint="use str, int, float, bool or bytes keys, or tuples of them; not NaN",
        )
    return key


def _flatten_registered(tree: PyTree, path: str | None) -> Node | Leaf:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if len(pairs) == 1 and not pairs[0][0]:
        return make_leaf(tree, path or "")
    keys = tuple(key_of(entries[0]) for entries, _ in pairs)
    children = tuple(
        _flatten(child, join(path, key)) for key, (_, child) in zip(keys, pairs, strict=True)
    )
    if type(tree) in (list, tuple):
        return Node(type(tree).__name__, keys, children)
    # A namedtuple class may be registered as something else; then its keys are not its fields.
    is_namedtuple = isinstance(tree, tuple) and keys == getattr(tree, "_fields", None)
    kind = "namedtuple" if is_namedtuple else "custom"
    return Node(kind, keys, children, qualified_name(type(tree)))


def key_of(entry: Any) -> Key:
    """The key in one entry of a JAX key path, such that `str` of it is what `keystr` shows."""
    match entry:
        case SequenceKey(idx=key) | DictKey(key=key) | FlattenedIndexKey(key=key):
            pass
        case GetAttrKey(name=key):
            pass
        case _:
            key = entry
    return key if type(key) in (*_KEY_TYPES, tuple) else str(key)
