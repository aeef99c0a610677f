"""The items of a step: how they lie in the tree of its commit.

A step that was saved as one object is a commit of that object. One that was saved as
several, by `Composite`, is a commit of {item name: object}. What cannot be read from the
tree is in the commit's metadata (`record.py`).
"""

import json
from dataclasses import dataclass
from functools import cached_property

from orbax.checkpoint import metadata as ocp_metadata

from vcjax import tree
from vcjax.history import Commit, LeafEntry
from vcjax.orbax.items.record import DEFAULT_ITEM, ItemRecord, StepRecord
from vcjax.repo import Repository
from vcjax.tree import Node


@dataclass(frozen=True)
class StoredItem:
    """One item of a step, none of whose data has been read yet.

    Attributes:
        name: its name.
        root: `Node`s with a `LeafEntry` at each end.
        record: what the commit's metadata say of it.
        repo: where the leaves are.
    """

    name: str
    root: Node | LeafEntry
    record: ItemRecord
    repo: Repository

    @cached_property
    def leaves(self) -> dict[str, LeafEntry]:
        """{leaf path within the item: entry}, in tree order."""
        return tree.leaf_dict(self.root)

    @cached_property
    def shardings(self) -> dict[str, ocp_metadata.ShardingMetadata]:
        """Recorded shardings by leaf path."""
        found, paths = {}, list(self.leaves)
        for text, ranges in self.record.shardings:
            sharding = _parse_sharding(text)
            for start, stop in ranges:
                found.update(dict.fromkeys(paths[start:stop], sharding))
        return found


def stored_items(repo: Repository, commit: Commit) -> tuple[StepRecord, dict[str, StoredItem]]:
    """The record of a step and its items by name, from the manifest alone."""
    record, root = StepRecord.of(commit), repo.history.manifest_of(commit).root
    if record.single or not isinstance(root, Node):
        roots = {DEFAULT_ITEM: root}
    else:
        roots = dict(zip(map(str, root.keys), root.children, strict=True))
    items = {
        name: StoredItem(name, roots[name], item, repo)
        for name, item in record.items.items()
        if name in roots
    }
    return record, items


def _parse_sharding(text: str) -> ocp_metadata.ShardingMetadata:
    fields = json.loads(text)
    # JSON has no tuples: an axis may be split over several mesh axes.
    spec = [tuple(part) if isinstance(part, list) else part for part in fields["partition_spec"]]
    return ocp_metadata.NamedShardingMetadata.from_deserialized_dict(
        {**fields, "partition_spec": spec}
    )
