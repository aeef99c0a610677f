"""`Node` tree of leaves -> the structure, types and shardings of a given tree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from vcjax import errors
from vcjax.tree import flax
from vcjax.tree.fit import check
from vcjax.tree.flattening import key_of
from vcjax.tree.leaf import Leaf
from vcjax.tree.spec import Node, join, leaf_dict
from vcjax.tree.target_arrays import place


@dataclass(frozen=True)
class Template:
    """A tree taken apart by leaf path, to be put together with other leaves.

    A restore that has the targets before any data are read can fail early, and
    place each leaf as soon as that is read; a merge rebuilds the first model.

    Attributes:
        targets: the leaves of the tree (arrays, `jax.ShapeDtypeStruct`s, plain
            values) by leaf path.
        build: puts the tree together with other leaves: {leaf path: value}.
    """

    targets: dict[str, Any]
    build: Callable[[Mapping[str, Any]], Any]


def template(like: PyTree) -> Template:
    """Takes `like` apart so that it can be rebuilt with other leaves.

    The static parts of `like` (functions in a TrainState, Variable metadata,
    the graph of an nnx Module) are used as they are; `like` is not changed.

    Raises:
        TreeError: two leaves have the same path.
    """
    targets: dict[str, Any] = {}
    return Template(targets, _open(like, None, targets))


_Build = Callable[[Mapping[str, Any]], Any]


def _open(tree: PyTree, path: str | None, targets: dict[str, PyTree]) -> _Build:
    """Adds the leaves of `tree` to `targets` and returns how to put it together."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=flax.is_nnx)
    builds = []
    for entries, value in pairs:
        below = path
        for entry in entries:
            below = join(below, key_of(entry))
        builds.append(_open_one(value, below, targets))
    return lambda leaves: treedef.unflatten([build(leaves) for build in builds])


def _open_one(value: PyTree, path: str | None, targets: dict[str, PyTree]) -> _Build:
    if flax.is_variable(value):
        inner = flax.variable_value(value)
        below = path if flax.is_plain(inner) else join(path, "value")
        build_value = _open(inner, below, targets)
        return lambda leaves: flax.replace_value(value, build_value(leaves))
    if flax.is_graph_node(value):
        graphdef, state = nnx.split(value)
        build_state = _open(state, path, targets)
        return lambda leaves: nnx.merge(graphdef, build_state(leaves))
    name = path or ""
    if name in targets:
        raise errors.TreeError(
            f"two leaves have the path {name!r}",
            path=name,
            hint="give the keys of that container different string forms",
        )
    targets[name] = value
    return lambda leaves: leaves[name]


def unflatten_like(root: Node | Leaf, like: PyTree, *, strict: bool = True) -> Any:
    """Puts a tree together with exactly the structure, types and shardings of `like`.

    Leaves are matched by leaf path, so a FrozenDict restores into a dict and
    an `nnx.State` into a Module. Arrays are cast to the dtype of their target,
    bool < integer < float < complex, never down; numbers and 0-d arrays convert
    into each other by the same rule. Words of PRNG keys convert to typed keys
    and back. An array target without a committed sharding gives an uncommitted
    array on the default device.

    Takes over the host buffers, as `unflatten` does.

    Args:
        root: `Node`s with `Leaf`s.
        like: a tree of arrays, `jax.ShapeDtypeStruct`s and plain values; may
            hold donated arrays, nnx States, Modules and Optimizers, abstract or not.
        strict: whether a stored leaf that `like` has no place for is an error.

    Returns:
        A new tree; `like` is not changed.

    Raises:
        StructureError: with one line per leaf that is missing, extra or does not fit.
    """
    into, stored = template(like), leaf_dict(root)
    specs = {path: leaf.spec for path, leaf in stored.items()}
    check(specs, into.targets, strict=strict, part="pass strict=False")
    return into.build(
        {path: place(stored[path], target, path) for path, target in into.targets.items()}
    )


def abstract(tree: PyTree) -> Any:
    """The same tree with arrays as `jax.ShapeDtypeStruct`s, committed shardings included.

    Serves as `like=` once the arrays themselves are gone. NumPy scalars and
    plain values stay; NumPy arrays become targets for `jax.Array`s. nnx Modules
    become abstract Modules.

    Example:
        >>> import numpy as np
        >>> abstract({"step": 7, "w": np.zeros((2, 3), np.float32)})
        {'step': 7, 'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    parts = template(tree)
    return parts.build({path: _abstract_leaf(value) for path, value in parts.targets.items()})


def _abstract_leaf(value: PyTree) -> Any:
    if isinstance(value, jax.Array):
        sharding = value.sharding if value.committed else None
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    if isinstance(value, np.ndarray):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    return value
