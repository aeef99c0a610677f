"""Comparing two trees in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vcjax.diffing.comparing import compare
from vcjax.diffing.statistics import leaf_statistics
from vcjax.diffing.treediff import LeafChange, TreeDiff
from vcjax.hashing import digest_arrays, value_digest
from vcjax.tree import LeafSpec, canonical, flatten, key_impl, leaf_dict, map_leaves


@dataclass(frozen=True)
class _Digested:
    spec: LeafSpec
    digest: str


def diff(a: Any, b: Any, stats: bool = True) -> TreeDiff:
    """What changed from tree `a` to tree `b`.

    Args:
        a: the old PyTree: arrays, PRNG keys and plain values at its leaves.
        b: the new one.
        stats: whether to compute figures of the differences.

    Raises:
        UnsupportedLeafError: a leaf is a function or an unknown object.

    Example:
        >>> import numpy as np
        >>> print(diff({"w": np.zeros(2)}, {"w": np.ones(2)}).counts["changed"])
        1
    """
    old, new = flatten(a), flatten(b)
    changes = compare(_digested(old), _digested(new))
    if not stats:
        return changes
    before, after = leaf_dict(old), leaf_dict(new)
    measurable = [change.path for change in changes.changes if has_statistics(change)]
    return with_statistics(
        changes,
        {path: canonical(before[path]) for path in measurable},
        {path: canonical(after[path]) for path in measurable},
    )


def _digested(root: Any) -> Any:
    """The same tree with specs and digests at its leaves."""
    leaves = leaf_dict(root)
    arrays = {path: leaf for path, leaf in leaves.items() if not leaf.spec.is_value}
    pairs = ((leaf.spec.dtype, canonical(leaf)) for leaf in arrays.values())
    digests = dict(zip(arrays, digest_arrays(pairs), strict=True))

    def payload(path: str, leaf: Any) -> _Digested:
        if leaf.spec.is_value:
            return _Digested(leaf.spec, value_digest(leaf.spec.dtype, leaf.data).hex())
        return _Digested(leaf.spec, digests[path].leaf.hex())

    return map_leaves(payload, root)


def with_statistics(changes: TreeDiff, old: Mapping[str, Any], new: Mapping[str, Any]) -> TreeDiff:
    """A diff with figures for the leaves whose contents are given.

    Args:
        changes: the diff.
        old: {leaf path: content before}, canonical host arrays.
        new: {leaf path: content after}, of the same paths.
    """

    specs = {change.path: change.new for change in changes.changes if change.new is not None}
    figures = {path: leaf_statistics(specs[path].dtype, old[path], new[path]) for path in new}
    return with_figures(changes, figures)


def with_figures(changes: TreeDiff, figures: Mapping[str, Mapping[str, float]]) -> TreeDiff:
    """A diff with the figures of some of its leaves, by leaf path."""
    return replace(
        changes,
        changes=tuple(
            replace(change, stats=figures[change.path]) if change.path in figures else change
            for change in changes.changes
        ),
    )


def has_statistics(change: LeafChange) -> bool:
    """Whether figures make sense: an array of numbers that changed in content alone."""
    one, other = change.old, change.new
    if change.status != "changed" or one is None or other is None:
        return False
    if one.is_value or key_impl(one.dtype) is not None:
        return False
    return one.dtype == other.dtype and one.shape == other.shape
