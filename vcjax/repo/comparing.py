"""Comparing two commits: digests first, data only of leaves that changed."""

from vcjax import diffing
from vcjax.diffing.trees import has_statistics, with_statistics
from vcjax.history import Manifest
from vcjax.objects import ObjectStore

BATCH_BYTES = 256 * 1024 * 1024
"""How much of either side is held in memory at once, leaves larger than this aside."""


def compare(
    old: Manifest,
    new: Manifest,
    objects: ObjectStore,
    stats: bool = True,
    paths: list[str] | None = None,
) -> diffing.TreeDiff:
    """What changed between two manifests; see `Repository.diff`."""
    changes = diffing.compare(old.root, new.root).matching(paths)
    if not stats:
        return changes
    pending = [change.path for change in changes.changes if has_statistics(change)]
    while pending:
        batch, size = [], 0
        while pending and (not batch or size + new.leaves[pending[0]].nbytes <= BATCH_BYTES):
            size += new.leaves[pending[0]].nbytes
            batch.append(pending.pop(0))
        before = dict(objects.read({path: old.leaves[path] for path in batch}))
        after = dict(objects.read({path: new.leaves[path] for path in batch}))
        changes = with_statistics(changes, before, after)
    return changes
