"""Comparing two trees by their digests alone. Needs no JAX and reads no data."""

from collections import defaultdict
from typing import Any

from vcjax.diffing.treediff import LeafChange, TreeDiff
from vcjax.tree import Node, join, leaf_dict


def compare(old: Any, new: Any) -> TreeDiff:
    """What changed from one tree to another.

    A leaf whose content appears under a new path, and is gone from its old one,
    counts as moved.

    Args:
        old: a `Node` tree, or single leaf, whose payloads have `spec` and `digest`
            (such as the root of a manifest).
        new: likewise.
    """
    before, after = leaf_dict(old), leaf_dict(new)
    sources: dict[str, list[str]] = defaultdict(list)
    for path, leaf in before.items():
        if path not in after:
            sources[leaf.digest].append(path)
    changes, moved = [], set()
    for path, leaf in after.items():
        if path in before:
            status = "unchanged" if before[path].digest == leaf.digest else "changed"
            changes.append(LeafChange(path, status, before[path].spec, leaf.spec))
        elif sources[leaf.digest]:
            origin = sources[leaf.digest].pop(0)
            moved.add(origin)
            spec = before[origin].spec
            changes.append(LeafChange(path, "moved", spec, leaf.spec, old_path=origin, shared=1.0))
        else:
            changes.append(LeafChange(path, "added", None, leaf.spec))
    for path, leaf in before.items():
        if path not in after and path not in moved:
            changes.append(LeafChange(path, "removed", leaf.spec, None))
    return TreeDiff(tuple(changes), _structure(old, new))


def _structure(old: Any, new: Any) -> tuple[str, ...]:
    """Paths of the containers that differ in a way that no leaf shows."""
    before, after = _containers(old), _containers(new)
    leaves = leaf_dict(old).keys() | leaf_dict(new).keys()
    differing = []
    for path in dict.fromkeys([*after, *before]):
        one, other = before.get(path), after.get(path)
        if one is None or other is None:
            empty = not (one or other).children  # pyright: ignore[reportOptionalMemberAccess]
            if empty and path not in leaves:  # a leaf in its place is listed itself
                differing.append(path)
        elif (one.kind, one.name) != (other.kind, other.name):
            differing.append(path)
    return tuple(differing)


def _containers(root: Any) -> dict[str, Node]:
    found: dict[str, Node] = {}
    stack: list[tuple[str | None, Any]] = [(None, root)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, Node):
            found[path or ""] = node
            pairs = zip(node.keys, node.children, strict=True)
            stack.extend((join(path, key), child) for key, child in pairs)
    return found
