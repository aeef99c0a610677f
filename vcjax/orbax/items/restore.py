"""Restoring an item into what Orbax's arguments ask for, leaf by leaf."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import orbax.checkpoint as ocp

from vcjax import objects, tree
from vcjax.errors import StructureError, VcjaxError
from vcjax.orbax.items.leaf_target import (
    Wanted,
    adjusted,
    fit,
    from_restore_args,
    from_target,
    resolve,
)
from vcjax.orbax.items.stored_item import StoredItem
from vcjax.repo.restore import read_leaves
from vcjax.tree import Leaf, LeafSpec

_TARGET = "the target"
"""What error messages call the tree that a caller restores into."""


def restore_plain(item: StoredItem) -> Any:
    """The item as it was saved, containers included, on the recorded shardings."""
    return _restore_as_stored(item, {})


def restore_standard(item: StoredItem, args: Any) -> Any:
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


def restore_pytree(item: StoredItem, args: Any) -> Any:
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


def _restore_as_stored(item: StoredItem, wanted: Mapping[str, Wanted]) -> Any:
    """The stored containers, with leaves as wanted; other leaves as they were."""
    unknown = [path for path in wanted if path not in item.leaves]
    if unknown:
        raise StructureError(
            "restore_args name leaves that the stored tree does not have:",
            problems=unknown,
            hint="give restore_args for the stored leaves: `item_metadata(step)` has them",
        )
    values = dict(_values(item, {path: wanted.get(path, Wanted()) for path in item.leaves}))

    def done(path: str, entry: Any) -> Leaf:
        spec = LeafSpec("value", (), "python", entry.spec.variable)
        return Leaf(spec, values[path])  # "python": taken over as it is

    return tree.unflatten(tree.map_leaves(done, item.root))


def _restore_into(
    item: StoredItem, like: Any, wanted: Mapping[str, Wanted], partial: bool = False
) -> Any:
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
    skipped: frozenset[str] | set[str] = frozenset(),
    like: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yields (leaf path, restored value), after everything was checked at once.

    Raises:
        StructureError: with one line per leaf that is missing, extra or does not fit.
    """
    specs: dict[str, LeafSpec] = {}
    targets: dict[str, Any] = {}
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
    tree.check(specs, {**targets, **missing}, strict=not partial, name=_TARGET)
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
    entries: Mapping[str, Any], specs: Mapping[str, LeafSpec], targets: Mapping[str, Any]
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


def _cast(stored: LeafSpec, wanted: LeafSpec, data: Any) -> Any:
    """A part of a leaf with the dtype that all of it is to have."""
    leaf = Leaf(replace(stored, shape=data.shape), data)
    return fit(leaf, replace(wanted, shape=data.shape)).data


def _restore_transformed(item: StoredItem, args: Any, wanted: Mapping[str, Wanted]) -> Any:
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


def _as_wanted(value: Any, wanted: Wanted, path: str) -> Any:
    leaf = tree.make_leaf(value, path)
    target = resolve(wanted, leaf.spec)
    if target is None:
        return value
    spec = adjusted(leaf.spec, target, wanted.strict)
    tree.check({path: spec}, {path: target}, strict=True, name=_TARGET)
    return tree.place(fit(leaf, spec), target, path)


def _with_restore_args(transforms: Any, restore_args: Any) -> Any:
    """Transforms whose `multi_value_fn` is called with the RestoreArgs of its output too."""
    flat = {
        "/".join(str(tree.key_of(entry)) for entry in entries): value
        for entries, value in jax.tree_util.tree_flatten_with_path(restore_args)[0]
    }

    def wrap(transform: Any) -> Any:
        function = transform.multi_value_fn
        if function is None:
            return transform
        return ocp.Transform(
            multi_value_fn=lambda key, original: function(key, original, flat[key])
        )

    return jax.tree.map(wrap, transforms, is_leaf=lambda x: isinstance(x, ocp.Transform))
