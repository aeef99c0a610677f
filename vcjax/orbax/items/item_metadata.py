"""Orbax's metadata of a step and its items, from the manifest alone."""

from collections.abc import Mapping
from typing import cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vcjax import tree
from vcjax.history import Commit, LeafEntry
from vcjax.orbax.items import handler_files
from vcjax.orbax.items.handlers import ItemHandlers
from vcjax.orbax.items.leaf_target import Wanted, resolve
from vcjax.orbax.items.record import DEFAULT_ITEM, metrics_of
from vcjax.orbax.items.stored_item import StoredItem, stored_items
from vcjax.orbax.orbax_internals import tree_metadata
from vcjax.repo import Repository
from vcjax.tree import Node


def described(
    repo: Repository, commit: Commit, handlers: ItemHandlers
) -> ocp.metadata.StepMetadata:
    """Orbax's `StepMetadata` of a step, from the manifest alone.

    Only files of a handler have to be read, as nobody else can tell what they hold.
    """
    record, items = stored_items(repo, commit)
    found = {name: _item_metadata(item, handlers) for name, item in items.items()}
    metrics = metrics_of(commit)
    nanoseconds = int(commit.time.timestamp() * 1e6) * 1000
    return ocp.metadata.StepMetadata(
        item_handlers={name: item.handler for name, item in record.items.items()},
        item_metadata=found[DEFAULT_ITEM] if record.single else ocp.args.Composite(**found),
        metrics=dict(metrics) if isinstance(metrics, Mapping) else {},
        init_timestamp_nsecs=nanoseconds,
        commit_timestamp_nsecs=nanoseconds,
        custom_metadata=dict(record.custom_metadata),
    )


def _item_metadata(item: StoredItem, handlers: ItemHandlers) -> object:
    if item.record.kind == "json":
        return None
    if item.record.kind == "files":
        try:
            handler = handlers.for_item(item)
        except ValueError:  # nobody here knows these files
            return None
        return handler_files.metadata(handler, item)
    described = _tree_metadata(item.root, item, None)
    return tree_metadata(described, item.record.custom_metadata)


def _tree_metadata(
    root: Node | LeafEntry, item: StoredItem, path: str | None
) -> PyTree[ocp.metadata.Metadata]:
    """Nested dicts, lists and tuples, as Orbax's metadata have no other containers."""
    if not isinstance(root, Node):
        return _leaf_metadata(root, item, path or "")
    children = [
        _tree_metadata(child, item, tree.join(path, key))
        for key, child in zip(root.keys, root.children, strict=True)
    ]
    match root.kind:
        case "none":
            return None
        case "list":
            return children
        case "tuple":
            return tuple(children)
    return dict(zip(root.keys, children, strict=True))


def _leaf_metadata(entry: LeafEntry, item: StoredItem, path: str) -> ocp.metadata.Metadata:
    spec, metadata = entry.spec, ocp.metadata
    name = path.replace("/", ".")
    folder = item.repo.store.location.folder
    place = None if folder is None else epath.Path(folder)
    if spec.is_value and spec.dtype in ("str", "bytes"):
        return metadata.StringMetadata(name, place)
    target = resolve(Wanted(), spec)
    if spec.is_value:
        zero = {"int": 0, "float": 0.0, "bool": False, "complex": 0j}[spec.dtype]
        return metadata.ScalarMetadata(name, place, dtype=np.asarray(zero).dtype)
    if spec.home == "scalar":
        return metadata.ScalarMetadata(name, place, dtype=tree.storage_dtype(spec.dtype))
    sharding = item.shardings.get(path)
    if sharding is None and spec.home == "jax":
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        sharding = metadata.SingleDeviceShardingMetadata.from_jax_sharding(device)
    if target is None:  # a typed PRNG key
        target = resolve(Wanted(sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])), spec)
    array = cast(jax.ShapeDtypeStruct | np.ndarray, target)
    return metadata.ArrayMetadata(name, place, array.shape, sharding, array.dtype)
