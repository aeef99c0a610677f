"""Steps whole: from Orbax's arguments to the tree of a commit, and back."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vcjax import tree
from vcjax.history import Commit
from vcjax.orbax.items import handler_files as foreign
from vcjax.orbax.items.handlers import ItemHandlers, decoded, encoded
from vcjax.orbax.items.leaf_target import Wanted, resolve
from vcjax.orbax.items.record import DEFAULT_ITEM, ItemRecord
from vcjax.orbax.items.stored_item import StoredItem, stored_items
from vcjax.orbax.manager.shared_save import Sharing
from vcjax.orbax.orbax_internals import tree_metadata
from vcjax.repo import Repository


@contextmanager
def staged(
    handlers: ItemHandlers, args: Mapping[str, Any], single: bool, sharing: Sharing | None = None
) -> Iterator[tuple[Any, dict[str, ItemRecord]]]:
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
            trees[name], records[name] = stack.enter_context(encoded(handler, item, sharing))
        yield trees[DEFAULT_ITEM] if single else trees, records


def restored(repo: Repository, commit: Commit, handlers: ItemHandlers, args: Any) -> Any:
    """A step as arguments ask for it.

    Args:
        args: one of Orbax's for a single object; `Composite` for several; None for all
            that there is, as it was saved.

    Raises:
        PrunedError: a policy let the data of this step go.
        KeyError: there is no such item.
        ValueError: the arguments are for a single object, and there are several, or the
            other way round.
    """
    repo.require_data(commit)
    record, items = stored_items(repo, commit)
    composite = isinstance(args, ocp.args.Composite)
    if record.single:
        if composite and len(args):
            raise ValueError(
                "Cannot provide `args` of type `Composite`: the step was saved as a single, "
                "unnamed object"
            )
        return decoded(handlers, items[DEFAULT_ITEM], None if composite else args)
    if args is None or (composite and not len(args)):
        args = dict.fromkeys(items)
    elif not composite:
        raise ValueError(
            "Must provide `args` of type `Composite`: the step was saved as the items "
            f"{', '.join(items)}"
        )
    missing = [name for name in args if name not in items]
    if missing:
        raise KeyError(f"there is no item {missing[0]!r} in the step; there are: {list(items)}")
    return ocp.args.Composite(
        **{name: decoded(handlers, items[name], item) for name, item in args.items()}
    )


def described(repo: Repository, commit: Commit, handlers: ItemHandlers) -> Any:
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


def metrics_of(commit: Commit) -> Any:
    """The metrics of a step as they were given; None without any."""
    fields = commit.metadata.get("orbax")
    whole = fields.get("metrics") if isinstance(fields, dict) else None
    return whole if whole is not None else dict(commit.metrics) or None


def _item_metadata(item: StoredItem, handlers: ItemHandlers) -> Any:
    if item.record.kind == "json":
        return None
    if item.record.kind == "files":
        try:
            handler = handlers.for_item(item)
        except ValueError:  # nobody here knows these files
            return None
        return foreign.metadata(handler, item)
    described = _tree_metadata(item.root, item, None)
    return tree_metadata(described, item.record.custom_metadata)


def _tree_metadata(root: Any, item: StoredItem, path: str | None) -> Any:
    """Nested dicts, lists and tuples, as Orbax's metadata have no other containers."""
    if not isinstance(root, tree.Node):
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


def _leaf_metadata(entry: Any, item: StoredItem, path: str) -> Any:
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
    return metadata.ArrayMetadata(name, place, target.shape, sharding, target.dtype)
