"""What vcjax needs to know of `flax.nnx`: Variables, States and graph nodes.

Of an `nnx.Variable` the value and the type are kept; its metadata (sharding
names, hooks, tags) is not, because it may hold functions. Restoring with
`like=` takes the metadata from there.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

import jax
from flax import nnx
from jaxtyping import PyTree

from vcjax.tree.names import find_class, qualified_name
from vcjax.tree.spec import Key


def is_variable(node: object) -> TypeGuard[nnx.Variable[Any]]:
    """Whether this is an `nnx.Variable` of any type."""
    return isinstance(node, nnx.Variable)


def is_graph_node(node: object) -> TypeGuard[nnx.Pytree]:
    """Whether this is an nnx Module, Optimizer, Rngs, Metric or the like."""
    return isinstance(node, nnx.Pytree)


def is_state(node: object) -> TypeGuard[nnx.State[Any, Any]]:
    """Whether this is an `nnx.State`."""
    return isinstance(node, nnx.State)


def is_nnx(node: object) -> bool:
    """Whether vcjax takes this apart itself, instead of leaving it to JAX's registry."""
    return is_variable(node) or is_graph_node(node)


def variable_value(variable: nnx.Variable) -> Any:
    """The value held, without running the Variable's hooks; a `jax.Ref` is read."""
    value = variable.get_raw_value()
    return value[...] if isinstance(value, jax.Ref) else value


def variable_type(variable: nnx.Variable) -> str:
    """The name of a Variable's type, for `LeafSpec.variable`."""
    return qualified_name(variable.var_type)


def is_plain(value: PyTree) -> bool:
    """Whether a Variable's value is one leaf, and not a tree of them."""
    return jax.tree_util.all_leaves([value])


def find_variable_type(name: str) -> type[nnx.Variable[Any]] | None:
    """The Variable type called `name`, if its module is already imported."""
    cls = find_class(name)
    return cls if cls is not None and issubclass(cls, nnx.Variable) else None


def make_variable(name: str, value: PyTree) -> nnx.Variable[Any]:
    """A Variable of the type called `name`, or a plain `nnx.Variable` where that is unknown."""
    cls = find_variable_type(name) or nnx.Variable
    # Not cls(value): a subclass may have an __init__ that asks for more.
    return cls.from_metadata(value, nnx.Variable(value).get_metadata())


def replace_value(variable: nnx.Variable, value: PyTree) -> nnx.Variable[Any]:
    """The same Variable, metadata included, with another value."""
    if isinstance(variable.get_raw_value(), jax.Ref):
        value = jax.new_ref(value)
    return variable.replace(value)


def make_state(mapping: Mapping[Key, PyTree]) -> nnx.State[Any, Any]:
    """An `nnx.State`; States within it become plain dicts, as `nnx.split` leaves them."""
    return nnx.State({k: v.raw_mapping if is_state(v) else v for k, v in mapping.items()})


def state(node: nnx.Pytree) -> nnx.State[Any, Any]:
    """The state of a graph node; a Variable that is shared appears once."""
    return nnx.state(node)
