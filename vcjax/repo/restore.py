"""Restoring: from a manifest to a PyTree, whole or in part."""

from collections.abc import Mapping, Sequence
from typing import Any

from vcjax import tree
from vcjax.errors import CorruptionError
from vcjax.hashing import stored_value_digest
from vcjax.hashing.digests import decode_value
from vcjax.history import LeafEntry, Manifest
from vcjax.objects import ObjectStore, Wanted


def restore(
    manifest: Manifest,
    objects: ObjectStore,
    like: Any = None,
    paths: str | Sequence[str] | None = None,
    verify: bool = True,
) -> Any:
    """The tree of a manifest; see `Repository.restore`."""
    chosen = tree.select(manifest.leaves, paths)
    entries = {path: manifest.leaves[path] for path in chosen}
    if like is None:
        root = manifest.root if paths is None else _pruned(manifest.root, set(chosen))
        leaves = dict(read_leaves(objects, entries, verify))
        return tree.unflatten(tree.map_leaves(lambda path, _: leaves[path], root))
    template = tree.template(like)
    targets = template.targets
    if paths is not None:
        targets = {path: target for path, target in targets.items() if path in entries}
    tree.check({path: entry.spec for path, entry in entries.items()}, targets, strict=True)
    values: dict[str, Any] = dict(template.targets)
    parts = _parts(entries, targets)
    for path, contents in objects.read_boxes(parts, verify) if parts else ():
        boxes = dict(zip(parts[path].boxes, contents, strict=True))
        values[path] = tree.place_boxes(entries[path].spec, boxes, targets[path], path)
    rest = {path: entry for path, entry in entries.items() if path not in parts}
    for path, leaf in read_leaves(objects, rest, verify):
        values[path] = tree.place(leaf, targets[path], path)
    return template.build(values)


def _parts(entries: Mapping[str, LeafEntry], targets: Mapping[str, Any]) -> dict[str, Wanted]:
    """What this process needs of large leaves that go to the devices of several processes."""
    wanted: dict[str, Wanted] = {}
    for path, entry in entries.items():
        if entry.is_object and not entry.spec.is_value:
            boxes = tree.own_boxes(targets[path], path)
            if boxes is not None:
                wanted[path] = Wanted(entry, boxes)
    return wanted


def is_spanning(like: Any) -> bool:
    """Whether a tree to restore into has arrays on the devices of several processes."""
    targets = tree.template(like).targets
    return any(tree.spans_processes(target, path) for path, target in targets.items())


def read_leaves(objects: ObjectStore, entries: Mapping[str, LeafEntry], verify: bool = True) -> Any:
    """Yields (leaf path, `vcjax.tree.Leaf` in host memory) in no particular order.

    Raises:
        CorruptionError: a leaf is damaged or gone.
    """
    arrays = {}
    for path, entry in entries.items():
        if not entry.spec.is_value:
            arrays[path] = entry
            continue
        if verify and stored_value_digest(entry.spec.dtype, entry.inline).hex() != entry.digest:
            raise CorruptionError(f"leaf {path!r} is damaged: it lacks its digest", path=path)
        try:
            value = decode_value(entry.spec.dtype, entry.inline)
        except (ValueError, TypeError) as error:
            raise CorruptionError(f"leaf {path!r} is damaged: {error}", path=path) from error
        yield path, tree.Leaf(entry.spec, value)
    for path, array in objects.read(arrays, verify):
        yield path, tree.Leaf(entries[path].spec, array)


def _pruned(root: Any, chosen: set[str], path: str | None = None) -> Any:
    """The tree with only the chosen leaves.

    Dicts lose the keys of other leaves. A sequence that loses elements, or any
    other container that loses fields, becomes a dict of what is left.
    """
    if not isinstance(root, tree.Node):
        return root if (path or "") in chosen else None
    kept = []
    for key, child in zip(root.keys, root.children, strict=True):
        part = _pruned(child, chosen, tree.join(path, key))
        if part is not None:
            kept.append((key, part))
    if not kept:
        return None
    keys, children = tuple(key for key, _ in kept), tuple(child for _, child in kept)
    whole = len(keys) == len(root.keys) or root.kind in _PARTIAL
    return tree.Node(root.kind if whole else "dict", keys, children, root.name if whole else "")


_PARTIAL = ("dict", "ordereddict", "defaultdict", "frozendict", "nnx_state")
