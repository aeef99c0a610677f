"""Saving a step: from Orbax's arguments to the tree of a commit and the records of its items."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from glob import escape
from typing import Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import metadata as ocp_metadata

from vcjax import tree
from vcjax.orbax.items import handler_files
from vcjax.orbax.items.handlers import Arguments, ItemHandlers, Positional, name_of
from vcjax.orbax.items.record import DEFAULT_ITEM, ItemRecord, Kind
from vcjax.orbax.items.shared_save import Sharing

_KINDS: dict[type, Kind] = {
    ocp.StandardCheckpointHandler: "tree",
    ocp.PyTreeCheckpointHandler: "tree",
    ocp.ArrayCheckpointHandler: "tree",
    ocp.JaxRandomKeyCheckpointHandler: "tree",
    ocp.NumpyRandomKeyCheckpointHandler: "tree",
    ocp.JsonCheckpointHandler: "json",
}
"""Handlers whose work is done here; of exactly these classes, as others may do more."""


@contextmanager
def staged(
    handlers: ItemHandlers,
    args: Mapping[str, Arguments],
    single: bool,
    sharing: Sharing | None = None,
) -> Iterator[tuple[PyTree, dict[str, ItemRecord]]]:
    """The tree of a commit for a step, and the records of its items.

    The tree may lie in temporary files, until the context is left.

    Args:
        handlers: which handler does what.
        args: {item name: arguments to save by}.
        single: whether the only item is the whole tree.
        sharing: with the other processes, if they save the same step.
    """
    with ExitStack() as stack:
        trees, records = {}, {}
        for name, item in args.items():
            handler = handlers.for_args(name, item)
            trees[name], records[name] = stack.enter_context(_encoded(handler, item, sharing))
        yield trees[DEFAULT_ITEM] if single else trees, records


@contextmanager
def _encoded(
    handler: ocp.CheckpointHandler, args: Arguments, sharing: Sharing | None
) -> Iterator[tuple[PyTree, ItemRecord]]:
    """The tree in which an item is committed, and its record.

    Args:
        sharing: with the other processes, if they save the same item.

    Raises:
        ValueError: there is nothing to save.
    """
    kind = "files" if isinstance(args, Positional) else _KINDS.get(type(handler), "files")
    if kind == "files":
        content = handler_files.written(handler, args, sharing)
    else:
        content = nullcontext(_content(cast(_HasItem, args), kind))
    with content as item:
        shardings = _shardings(item) if kind == "tree" else ()
        custom = getattr(args, "custom_metadata", None)
        yield item, ItemRecord(kind, name_of(handler), custom, shardings)


class _HasItem(Protocol):
    """What the arguments of the handlers in `_KINDS` have in common."""

    item: PyTree


def _content(args: _HasItem, kind: Kind) -> PyTree:
    if kind == "json":
        return json.loads(json.dumps(args.item))
    if args.item is None:
        raise ValueError("Must provide item to save.")
    save_args = getattr(args, "save_args", None)
    return args.item if save_args is None else _cast(args.item, save_args)


def _cast(item: PyTree, save_args: PyTree[ocp.SaveArgs]) -> PyTree:
    """The item with every leaf cast as its `SaveArgs` say; chunk sizes are ours to choose."""
    template = tree.template(item)
    given = tree.template(save_args).targets
    values = dict(template.targets)
    for path, value in values.items():
        dtype = getattr(given.get(path), "dtype", None)
        if dtype is None:
            continue
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            values[path] = value.astype(dtype)
        elif isinstance(value, bool | int | float | complex):
            values[path] = jnp.asarray(value, dtype).item()
    return template.build(values)


def _shardings(item: PyTree) -> tuple[tuple[str, list[list[int]]], ...]:
    """The shardings of the leaves of a tree, as `ItemRecord` has them.

    Placement on one device is not recorded: it says nothing about the model.
    """
    plain = (np.ndarray, np.generic, int, float, complex, str, bytes)
    if all(isinstance(leaf, plain) for leaf in jax.tree.leaves(item)) or jax.device_count() < 2:
        return ()  # JAX is not asked for its devices where it is not used
    root = tree.flatten(item, spanning=True)
    ranges: dict[str, list[list[int]]] = {}
    texts: dict[jax.sharding.NamedSharding, str] = {}
    for index, (_, leaf) in enumerate(tree.iter_leaves(root)):
        sharding = getattr(leaf.data, "sharding", None)
        if not isinstance(sharding, jax.sharding.NamedSharding) or sharding.mesh.size < 2:
            continue
        if sharding not in texts:
            made = ocp_metadata.NamedShardingMetadata.from_jax_sharding(sharding)
            devices = sharding.mesh.devices
            if devices is not None and devices.ravel().tolist() == jax.devices():
                made.device_mesh = None  # all, in their order: thousands of numbers less
            texts[sharding] = made.to_serialized_string()
        found = ranges.setdefault(texts[sharding], [])
        if found and found[-1][1] == index:
            found[-1][1] = index + 1
        else:
            found.append([index, index + 1])
    return tuple(ranges.items())


_OF_FIRST = ("JaxRandomKeyCheckpointHandler", "NumpyRandomKeyCheckpointHandler")
"""Handlers of what each process may have its own of, and saves process 0's."""


def from_first(records: Mapping[str, ItemRecord], single: bool) -> list[str]:
    """Globs of the leaves of items of which process 0's count, as in Orbax.

    JSON, random keys that are not spread over processes, and files of handlers.
    """
    chosen = [
        name
        for name, record in records.items()
        if record.kind != "tree" or record.handler.endswith(_OF_FIRST)
    ]
    return ["**" if single else f"{escape(tree.escape(name))}/**" for name in chosen]
