"""The leaves of a commit as a diff reads them: chunk by chunk, those that differ alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from vcjax.history import LeafEntry, Manifest
from vcjax.objects import ObjectStore, PartialReader

AHEAD_BYTES = 4 * 1024 * 1024
"""How much of small leaves is read together where nobody has said which: of a few hundred that
share a pack, reading each by itself takes a hundred times as long."""


@dataclass(frozen=True)
class _Prepared:
    """Leaves that will be read: small ones by leaf path, large ones opened."""

    small: Mapping[str, np.ndarray] = field(default_factory=dict)
    large: PartialReader | None = None


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
        self._prepared = (_Prepared(), _Prepared())
        self._asked: dict[str, np.ndarray] = {}

    def prepare(self, paths: Sequence[str]) -> None:
        """See `vcjax.diffing.Content`."""
        entries = {path: self._leaves[path] for path in paths}
        small = {path: entry for path, entry in entries.items() if not entry.is_object}
        large = {path: entry for path, entry in entries.items() if entry.is_object}
        prepared = _Prepared(dict(self._objects.read(small)), self._objects.open_parts(large))
        self._prepared, self._asked = (prepared, self._prepared[0]), {}

    def read(self, path: str, first: int, last: int) -> np.ndarray:
        """See `vcjax.diffing.Content`."""
        for prepared in self._prepared:
            if path in prepared.small:
                return prepared.small[path].reshape(-1)  # of less than a chunk
            if prepared.large is not None and path in prepared.large:
                return prepared.large.read(path, first, last)
        if self._leaves[path].is_object:
            return self._objects.open_parts({path: self._leaves[path]}).read(path, first, last)
        asked = self._asked
        if path not in asked:
            asked = self._asked = asked | dict(self._objects.read(self._following(path)))
        return asked[path].reshape(-1)

    def _following(self, path: str) -> dict[str, LeafEntry]:
        """A small leaf and those that come behind it."""
        found, held = {}, 0
        for name in islice(self._leaves, list(self._leaves).index(path), None):
            entry = self._leaves[name]
            if entry.is_object or entry.spec.is_value or name in self._asked:
                continue
            held += entry.nbytes
            if found and held > AHEAD_BYTES:
                break
            found[name] = entry
        return found


def side(manifest: Manifest, objects: ObjectStore) -> tuple[Any, CommitContent]:
    """A commit as one side of a diff (`vcjax.diffing.examine`)."""
    return manifest.root, CommitContent(manifest, objects)
