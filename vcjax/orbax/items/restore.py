"""Restoring a step: from its commit to what Orbax's arguments ask for, leaf by leaf."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from vcjax import objects, tree
from vcjax.errors import StructureError, VcjaxError
from vcjax.history import Commit, LeafEntry
from vcjax.orbax.items import handler_files
from vcjax.orbax.items.handlers import Arguments, ItemHandlers, default_arguments
from vcjax.orbax.items.leaf_target import (
    Target,
    Wanted,
    adjusted,
    fit,
    from_restore_args,
    from_target,
    resolve,
)
from vcjax.orbax.items.record import DEFAULT_ITEM
from vcjax.orbax.items.stored_item import StoredItem, stored_items
from vcjax.repo import Repository
from vcjax.repo.restore import read_leaves
from vcjax.tree import Leaf, LeafSpec

_TARGET = "the target"
_PART = "restore a part of the tree"
"""What error messages call the tree that a caller restores into."""


# -- steps and items -----------------------------------------------------------


def restored(
    repo: Repository,
    commit: Commit,
    handlers: ItemHandlers,
    args: Arguments | None,
) -> PyTree:
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
        named = dict.fromkeys(items)
    elif isinstance(args, ocp.args.Composite):
        named = dict(args.items())
    else:
        raise ValueError(
            "Must provide `args` of type `Composite`: the step was saved as the items "
            f"{', '.join(items)}"
        )
    missing = [name for name in named if name not in items]
    if missing:
        raise KeyError(f"there is no item {missing[0]!r} in the step; there are: {list(items)}")
    return ocp.args.Composite(
        **{name: decoded(handlers, items[name], item) for name, item in named.items()}
    )


def decoded(handlers: ItemHandlers, item: StoredItem, args: Arguments | None) -> PyTree:
    """An item as arguments ask for it; None: as it was saved.

    Raises:
        VcjaxError: it was saved as files and these arguments are not of a handler's.
        StructureError: it does not fit; names every path.
    """
    if args is None or item.record.kind == "files":
        return _decoded_by_handler(handlers, item, args)
    match args:
        case ocp.args.StandardRestore():
            return restore_standard(item, args)
        case ocp.args.PyTreeRestore():
            return restore_pytree(item, args)
        case ocp.args.ArrayRestore():
            return restore_pytree(item, ocp.args.PyTreeRestore(restore_args=args.restore_args))
        case ocp.args.JaxRandomKeyRestore():
            return restore_pytree(item, ocp.args.PyTreeRestore(restore_args=args.restore_args))
        case ocp.args.NumpyRandomKeyRestore() | ocp.args.JsonRestore():
            return restore_plain(item)
    raise VcjaxError(
        f"item {item.name!r} was saved as a {item.record.kind} by {item.record.handler}; "
        f"{type(args).__qualname__} is for files of another handler",
        hint="restore it by the arguments that go with the ones it was saved by",
    )


def _decoded_by_handler(handlers: ItemHandlers, item: StoredItem, args: Arguments | None) -> PyTree:
    if item.record.kind != "files":
        return restore_plain(item)
    if args is not None:
        handler = handlers.for_args(item.name, args)
    else:
        handler = handlers.for_item(item)
        args = default_arguments(handler)
    return handler_files.restore(handler, item, args)


# -- trees ---------------------------------------------------------------------


def restore_plain(item: StoredItem) -> PyTree:
    """The item as it was saved, containers included, on the recorded shardings."""
    return _restore_as_stored(item, {})


def restore_standard(item: StoredItem, args: ocp.args.StandardRestore) -> PyTree:
    """The item for `ocp.args.StandardRestore`."""
    fallback = args.fallback_sharding
    if args.item is None:
        return _restore_as_stored(item, dict.fromkeys(item.leaves, Wanted(fallback=fallback)))
    wanted = {
        path: replace(from_target(value, args.strict), fallback=fallback)
        for path, value in tree.template(args.item).targets.items()
        if value is not ocp.PLACEHOLDER
    }
    return _restore_into(item, args.item, wanted)


def restore_pytree(item: StoredItem, args: ocp.args.PyTreeRestore) -> PyTree:
    """The item for `ocp.args.PyTreeRestore`.

    As in Orbax `args.item` gives the structure, and `args.restore_args` all the rest.
    """
    if args.legacy_transform_fn is not None:
        raise VcjaxError(
            "legacy_transform_fn works on Orbax's files, and there are none",
            hint="use transforms=, or restore the tree and change it",
        )
    given = {} if args.restore_args is None else tree.template(args.restore_args).targets
    wanted = {path: from_restore_args(value) for path, value in given.items()}
    if args.transforms is not None:
        return _restore_transformed(item, args, wanted)
    if args.item is None:
        return _restore_as_stored(item, wanted)
    return _restore_into(item, args.item, wanted, partial=args.partial_restore)


def _restore_as_stored(item: StoredItem, wanted: Mapping[str, Wanted]) -> PyTree:
    """The stored containers, with leaves as wanted; other leaves as they were."""
    unknown = [path for path in wanted if path not in item.leaves]
    if unknown:
        raise StructureError(
            "restore_args name leaves that the stored tree does not have:",
            problems=unknown,
            hint="give restore_args for the stored leaves: `item_metadata(step)` has them",
        )
    values = dict(_values(item, {path: wanted.get(path, Wanted()) for path in item.leaves}))

    def done(path: str, entry: LeafEntry) -> Leaf:
        spec = LeafSpec("value", (), "python", entry.spec.variable)
        return Leaf(spec, values[path])  # "python": taken over as it is

    return tree.unflatten(tree.map_leaves(done, item.root))


def _restore_into(
    item: StoredItem, like: PyTree, wanted: Mapping[str, Wanted], partial: bool = False
) -> PyTree:
    """The structure of `like`, with leaves as wanted; others as they were stored.

    Leaves of `like` that are `PLACEHOLDER` are not read, and stay.

    Args:
        partial: whether stored leaves that `like` has no place for are left out.
    """
    template = tree.template(like)
    values = dict(template.targets)
    chosen = {path: wanted.get(path, Wanted()) for path in values}
    skipped = {path for path, value in values.items() if value is ocp.PLACEHOLDER}
    for path in skipped:
        del chosen[path]
    values.update(_values(item, chosen, partial, skipped, template.targets))
    return template.build(values)


def _values(
    item: StoredItem,
    wanted: Mapping[str, Wanted],
    partial: bool = True,
    skipped: AbstractSet[str] = frozenset(),
    like: Mapping[str, Target] | None = None,
) -> Iterator[tuple[str, object]]:
    """Yields (leaf path, restored value), after everything was checked at once.

    Raises:
        StructureError: with one line per leaf that is missing, extra or does not fit.
    """
    specs: dict[str, LeafSpec] = {}
    targets: dict[str, Target] = {}
    for path, entry in item.leaves.items():
        if path not in wanted:
            if path not in skipped:
                specs[path] = entry.spec
            continue
        target = resolve(wanted[path], entry.spec, item.shardings.get(path))
        if target is None:
            continue
        targets[path] = target
        specs[path] = adjusted(entry.spec, target, wanted[path].strict)
    missing = {path: (like or {}).get(path) for path in wanted if path not in item.leaves}
    tree.check(specs, {**targets, **missing}, strict=not partial, name=_TARGET, part=_PART)
    chosen = {path: item.leaves[path] for path in wanted}
    parts = _parts(chosen, specs, targets)
    for path, contents in item.repo.objects.read_boxes(parts) if parts else ():
        boxes = zip(parts[path].boxes, contents, strict=True)
        cast = {box: _cast(chosen[path].spec, specs[path], data) for box, data in boxes}
        yield path, tree.place_boxes(specs[path], cast, targets[path], path)
        del chosen[path]
    for path, leaf in read_leaves(item.repo.objects, chosen):
        if path in targets:
            yield path, tree.place(fit(leaf, specs[path]), targets[path], path)
        else:
            yield path, tree.restore_leaf(leaf)


def _parts(
    entries: Mapping[str, LeafEntry], specs: Mapping[str, LeafSpec], targets: Mapping[str, Target]
) -> dict[str, objects.Wanted]:
    """What this process needs of leaves that go to the devices of several processes."""
    parts = {}
    for path, target in targets.items():
        entry = entries[path]
        if entry.is_object and not entry.spec.is_value and entry.spec.shape == specs[path].shape:
            boxes = tree.own_boxes(target, path)
            if boxes is not None:
                parts[path] = objects.Wanted(entry, boxes)
    return parts


def _cast(stored: LeafSpec, wanted: LeafSpec, data: np.ndarray) -> np.ndarray:
    """A part of a leaf with the dtype that all of it is to have."""
    leaf = Leaf(replace(stored, shape=data.shape), data)
    return fit(leaf, replace(wanted, shape=data.shape)).data


def _restore_transformed(
    item: StoredItem, args: ocp.args.PyTreeRestore, wanted: Mapping[str, Wanted]
) -> PyTree:
    """The stored tree through Orbax's `apply_transformations`, in host memory."""
    if args.item is None:
        raise ValueError("transforms need item=, the structure of the expected result")
    targets = tree.template(args.item).targets
    if not args.transforms and args.transforms_default_to_original:
        stored = {path: wanted.get(path, Wanted()) for path in targets}
        return _restore_into(item, args.item, stored, partial=True)
    restore_args = args.restore_args
    if restore_args is None:
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(), args.item)
    result = ocp.apply_transformations(
        restore_plain(item),
        _with_restore_args(args.transforms, restore_args),
        args.item,
        args.transforms_default_to_original,
    )
    template = tree.template(result)
    values = dict(template.targets)
    for path, value in values.items():
        if value is not targets.get(path):  # else a fallback, which stays as it was given
            values[path] = _as_wanted(value, wanted.get(path, Wanted()), path)
    return template.build(values)


def _as_wanted(value: object, wanted: Wanted, path: str) -> object:
    leaf = tree.make_leaf(value, path)
    target = resolve(wanted, leaf.spec)
    if target is None:
        return value
    spec = adjusted(leaf.spec, target, wanted.strict)
    tree.check({path: spec}, {path: target}, strict=True, name=_TARGET, part=_PART)
    return tree.place(fit(leaf, spec), target, path)


def _with_restore_args(
    transforms: PyTree[ocp.Transform], restore_args: PyTree[ocp.RestoreArgs]
) -> PyTree[ocp.Transform]:
    """Transforms whose `multi_value_fn` is called with the RestoreArgs of its output too."""
    flat = {
        "/".join(str(tree.key_of(entry)) for entry in entries): value
        for entries, value in jax.tree_util.tree_flatten_with_path(restore_args)[0]
    }

    def wrap(transform: ocp.Transform) -> ocp.Transform:
        function = cast(Callable[..., object] | None, transform.multi_value_fn)
        if function is None:
            return transform
        return ocp.Transform(
            multi_value_fn=lambda key, original: function(key, original, flat[key])
        )

    return jax.tree.map(wrap, transforms, is_leaf=lambda x: isinstance(x, ocp.Transform))
