"""Comparing two trees by their digests. Needs no JAX."""

from dataclasses import replace
from typing import Any

from vcjax.diffing.batch import differing
from vcjax.diffing.matching import Identified, Matching, Root, Similar
from vcjax.diffing.small_values import is_small
from vcjax.diffing.treediff import LeafChange, TreeDiff
from vcjax.tree import Node, join, leaf_dict


def compare(old: Root, new: Root, similar: Similar | None = None) -> TreeDiff:
    """What changed from one tree to another, without figures.

    A leaf whose content appears under a new path, and is gone from its old one,
    counts as moved; `vcjax.diffing.matching` says how leaves are matched.

    Args:
        old: a tree, such as the root of a manifest.
        new: likewise.
        similar: compares the contents of leaves that are matched neither by name nor
            by digest; without it no data are read.
    """
    before, after = leaf_dict(old), leaf_dict(new)
    origins = _origins(old, new, before, after, similar)
    changes = []
    for path, leaf in after.items():
        if path not in origins:
            change = LeafChange(path, "added", None, leaf.spec, new_value=_value(leaf))
            changes.append(change)
            continue
        origin = before[origins[path]]
        equal = origin.digest == leaf.digest
        shared = 1.0 if equal else _shared(origin, leaf)
        if origins[path] != path:
            change = LeafChange(path, "moved", origin.spec, leaf.spec, None, origins[path], shared)
        elif equal:
            change = LeafChange(path, "unchanged", origin.spec, leaf.spec, shared=shared)
        else:
            change = LeafChange(path, "changed", origin.spec, leaf.spec, shared=shared)
        if not equal:
            change = replace(change, old_value=_value(origin), new_value=_value(leaf))
        changes.append(change)
    gone = before.keys() - origins.values()
    for path, leaf in before.items():
        if path in gone:
            change = LeafChange(path, "removed", leaf.spec, None, old_value=_value(leaf))
            changes.append(change)
    return TreeDiff(tuple(changes), _structure(old, new))


def _origins(
    old: Root,
    new: Root,
    before: dict[str, Identified],
    after: dict[str, Identified],
    similar: Similar | None,
) -> dict[str, str]:
    """{path in the new tree: path in the old one} of the leaves that are in both."""
    sides = [[(path, leaf.digest) for path, leaf in side.items()] for side in (before, after)]
    if sides[0] <= sides[1]:
        return {there: path for path, there in Matching(similar).match(old, new)}
    # Always the same one first, so that the diff back has the same pairs.
    exchanged = similar and (lambda there, path: similar(path, there))
    return dict(Matching(exchanged).match(new, old))


def _value(leaf: Identified) -> Any:
    """What a leaf is, if it is small enough to be shown and at hand; else None."""
    return getattr(leaf, "value", None) if is_small(leaf.spec) else None


def _shared(old: Identified, new: Identified) -> float:
    """The fraction of chunks that two leaves have alike."""
    if str(old.spec) != str(new.spec):
        return 0.0
    different = differing(old.chunks, new.chunks)
    return 0.0 if different is None else 1 - len(different) / len(old.chunks)


def _structure(old: Root, new: Root) -> tuple[str, ...]:
    """Paths of the containers that differ in a way that no leaf shows."""
    before, after = _containers(old), _containers(new)
    leaves = leaf_dict(old).keys() | leaf_dict(new).keys()
    found = []
    for path in dict.fromkeys([*after, *before]):
        one, other = before.get(path), after.get(path)
        if one is None or other is None:
            empty = not (one or other).children  # pyright: ignore[reportOptionalMemberAccess]
            if empty and path not in leaves:  # a leaf in its place is listed itself
                found.append(path)
        elif (one.kind, one.name) != (other.kind, other.name):
            found.append(path)
    return tuple(found)


def _containers(root: Root) -> dict[str, Node]:
    found: dict[str, Node] = {}
    stack: list[tuple[str | None, Root]] = [(None, root)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, Node):
            found[path or ""] = node
            pairs = zip(node.keys, node.children, strict=True)
            stack.extend((join(path, key), child) for key, child in pairs)
    return found
