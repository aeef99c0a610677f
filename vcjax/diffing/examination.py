"""The whole of a diff: matching, figures, what was kept, and what two sides did to a base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from vcjax.diffing.batch import differing
from vcjax.diffing.contents import Content
from vcjax.diffing.digest_comparison import compare
from vcjax.diffing.matching import Identified, Root
from vcjax.diffing.measurement import BATCH_BYTES, Pair, measure
from vcjax.diffing.relations import kept, permutation
from vcjax.diffing.sampler import Sampler
from vcjax.diffing.spectra import spectrum
from vcjax.diffing.statistics import OF_WHOLE_LEAVES
from vcjax.diffing.treediff import LeafChange, TreeDiff
from vcjax.tree import key_impl, leaf_dict

Stats = bool | Literal["whole", "full"]
"""Whether to compute figures: of what differs alone, of whole leaves, and all of them."""

Side = tuple[Root, Content]
"""A tree of leaves with digests, and where their contents are."""


def examine(
    old: Side,
    new: Side,
    stats: Stats = True,
    paths: str | Sequence[str] | None = None,
    limit: int = BATCH_BYTES,
) -> TreeDiff:
    """What changed from one side to another.

    Args:
        old: the old side.
        new: the new one.
        stats: whether to read what changed and compute figures; "whole" reads the chunks
            that are equal on both sides too, for the figures that need them, and "full"
            computes those that need a decomposition as well.
        paths: leaf path globs: only these leaves.
        limit: bytes of both sides that are prepared at once.
    """
    if not stats:
        return compare(old[0], new[0]).matching(paths)
    before, after = leaf_dict(old[0]), leaf_dict(new[0])
    dtypes = tuple(
        {path: leaf.spec.dtype for path, leaf in side.items() if not leaf.spec.is_value}
        for side in (before, after)
    )
    sampler = Sampler(old[1], new[1], (dtypes[0], dtypes[1]))
    changes = compare(old[0], new[0], sampler).matching(paths)
    pairs = [
        _pair(change, before, after, stats is True and old[1].lazy and new[1].lazy)
        for change in changes.changes
        if has_statistics(change)
    ]
    figures = measure(pairs, old[1], new[1], limit)
    if stats == "full":
        for pair in pairs:
            figures[pair.path] |= spectrum(pair, figures[pair.path], old[1], new[1])
    # A removed leaf may have the path of one that moved there.
    measured = (
        _finished(change, figures.get(change.path), old[1], new[1])
        if change.new is not None
        else change
        for change in changes.changes
    )
    return replace(changes, changes=tuple(measured))


def _pair(
    change: LeafChange,
    before: Mapping[str, Identified],
    after: Mapping[str, Identified],
    lazy: bool,
) -> Pair:
    origin = change.old_path if change.old_path is not None else change.path
    one, other = before[origin], after[change.path]
    chunks = differing(one.chunks, other.chunks) if lazy else None
    return Pair(change.path, origin, other.spec, chunks)


def _finished(
    change: LeafChange, figures: Mapping[str, Any] | None, old: Content, new: Content
) -> LeafChange:
    """A change with its figures, and with what was kept of a leaf that was made over."""
    found = None
    if figures is not None:
        change = replace(change, stats=figures)
        found = permutation(change, old, new)
    elif change.content_changed:
        found = kept(change, old, new)
    if change.stats is not None and change.stats["coverage"] < 1:
        unknown = dict.fromkeys(OF_WHOLE_LEAVES)
        change = replace(change, stats={**change.stats, **unknown})
    return change if found is None else replace(change, relation=found[0], note=found[1])


def has_statistics(change: LeafChange) -> bool:
    """Whether figures make sense: an array of numbers that changed in content alone."""
    one, other = change.old, change.new
    if not change.content_changed or one is None or other is None:
        return False
    if one.is_value or key_impl(one.dtype) is not None:
        return False
    return one.dtype == other.dtype and one.shape == other.shape
