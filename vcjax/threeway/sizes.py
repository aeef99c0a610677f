"""How much each side of a conflict changed a leaf, and how far the changes agree."""

from dataclasses import dataclass
from typing import Any

from vcjax import diffing, tree
from vcjax.history import LeafEntry, Manifest
from vcjax.objects import ObjectStore
from vcjax.objects.commit_content import side
from vcjax.threeway import Decision


@dataclass(frozen=True)
class ConflictSize:
    """The changes of one leaf by the sides that changed it, in the order of `Decision.changed`.

    Attributes:
        relative_l2: norm of the change over that of the base; None where the side or the
            base has no numbers of the base's shape and dtype.
        cosine: [side][side] of the angles between the changes; empty if one is None.
    """

    relative_l2: tuple[float | None, ...]
    cosine: tuple[tuple[float, ...], ...]


def size_of(decision: Decision, objects: ObjectStore) -> ConflictSize:
    """Reads a leaf of all sides that changed it, and compares them with the base.

    Args:
        decision: a conflict.
        objects: where the leaves are.
    """
    nodes = [decision.sides[at] for at in decision.changed]
    if not _has_numbers(decision.base):
        return ConflictSize((None,) * len(nodes), ())
    base = _as_side(decision.base, objects)
    fits = [_has_numbers(node) and _alike(node, decision.base) for node in nodes]
    sides = [
        _as_side(node, objects) if fit else None for node, fit in zip(nodes, fits, strict=True)
    ]
    found = tuple(None if there is None else _relative_l2(base, there) for there in sides)
    if not all(fits):
        return ConflictSize(found, ())
    alike = diffing.similarity_of([there for there in sides if there is not None], base)
    return ConflictSize(found, alike.cosine)


def _has_numbers(node: Any) -> bool:
    return isinstance(node, LeafEntry) and node.spec.has_mean


def _alike(one: LeafEntry, other: LeafEntry) -> bool:
    return (one.spec.dtype, one.spec.shape) == (other.spec.dtype, other.spec.shape)


def _as_side(entry: LeafEntry, objects: ObjectStore) -> Any:
    """A tree of this leaf alone, as one side of a diff."""
    return side(Manifest(tree.Node("dict", ("leaf",), (entry,))), objects)


def _relative_l2(base: Any, there: Any) -> float | None:
    [change] = diffing.examine(base, there).changes
    return None if change.stats is None else float(change.stats["relative_l2"])
