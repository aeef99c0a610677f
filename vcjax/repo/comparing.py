"""Comparing commits: digests first, then only the chunks that differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vcjax import diffing
from vcjax.diffing import batches as batches
from vcjax.history import Manifest
from vcjax.objects import ObjectStore

BATCH_BYTES = 64 * 1024 * 1024
"""How much of both sides together is prepared at once: small leaves are read together, and
headers of large ones. Large leaves are then read in runs of a few chunks."""


class CommitContent:
    """The contents of a commit's leaves: small ones by the batch, large ones by the chunk.

    Args:
        manifest: of the commit.
        objects: where the leaves are.
    """

    lazy = True

    def __init__(self, manifest: Manifest, objects: ObjectStore):
        self._leaves = manifest.leaves
        self._objects = objects
        self._small: dict[str, np.ndarray] = {}
        self._large: Any = None
        self._opened: frozenset[str] = frozenset()

    def prepare(self, paths: Sequence[str]) -> None:
        """See `vcjax.diffing.Content`."""
        entries = {path: self._leaves[path] for path in paths}
        small = {path: entry for path, entry in entries.items() if not entry.is_object}
        large = {path: entry for path, entry in entries.items() if entry.is_object}
        self._small = dict(self._objects.read(small))
        self._large = self._objects.open_parts(large)
        self._opened = frozenset(large)

    def read(self, path: str, first: int, last: int) -> np.ndarray:
        """See `vcjax.diffing.Content`."""
        if path in self._small:
            return self._small[path].reshape(-1)  # of less than a chunk
        if path in self._opened:
            return self._large.read(path, first, last)
        entry = {path: self._leaves[path]}
        if entry[path].is_object:
            return self._objects.open_parts(entry).read(path, first, last)
        return next(iter(self._objects.read(entry)))[1].reshape(-1)


def side(manifest: Manifest, objects: ObjectStore) -> tuple[Any, CommitContent]:
    """A commit as one side of a diff (`vcjax.diffing.examine`)."""
    return manifest.root, CommitContent(manifest, objects)


def compare(
    old: Manifest,
    new: Manifest,
    objects: ObjectStore,
    stats: Any = True,
    paths: list[str] | None = None,
    base: Manifest | None = None,
) -> diffing.TreeDiff:
    """What changed between two manifests; see `Repository.diff`.

    Args:
        old: of the old side.
        new: of the new one.
        objects: where the leaves of all are.
        stats: False, True or "full".
        paths: leaf path globs: only these leaves.
        base: of what both come from: then `TreeDiff.three_way` is set.
    """
    if not stats and base is None:
        return diffing.compare(old.root, new.root).matching(paths)
    sides = side(old, objects), side(new, objects)
    if base is None:
        return diffing.examine(*sides, stats, paths, BATCH_BYTES)
    return diffing.examine_sides(*sides, side(base, objects), stats, paths, BATCH_BYTES)


def similarity(
    models: Sequence[Manifest], base: Manifest, objects: ObjectStore, names: Sequence[str]
) -> diffing.Similarity:
    """How alike the task vectors of several commits are (`vcjax.diffing.similarity`)."""
    sides = [side(manifest, objects) for manifest in models]
    return diffing.similarity_of(sides, side(base, objects), names, BATCH_BYTES)
