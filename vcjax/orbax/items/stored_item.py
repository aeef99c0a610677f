"""The items of a step: how they lie in the tree of its commit.

A step that was saved as one object is a commit of that object. One that was saved as
several, by `Composite`, is a commit of {item name: object}. What cannot be read from the
tree is in the commit's metadata (`records`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import metadata as ocp_metadata

from vcjax import tree
from vcjax.history import Commit, LeafEntry
from vcjax.orbax.items.record import DEFAULT_ITEM, ItemRecord, StepRecord
from vcjax.repo import Repository


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
    root: Any
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
    if record.single:
        roots = {DEFAULT_ITEM: root}
    else:
        roots = dict(zip(map(str, root.keys), root.children, strict=True))
    items = {
        name: StoredItem(name, roots[name], item, repo)
        for name, item in record.items.items()
        if name in roots
    }
    return record, items


def record_shardings(item: Any) -> tuple[tuple[str, list[list[int]]], ...]:
    """The shardings of the leaves of a tree, as `ItemRecord` has them.

    Placement on one device is not recorded: it says nothing about the model.
    """
    plain = (np.ndarray, np.generic, int, float, complex, str, bytes)
    if all(isinstance(leaf, plain) for leaf in jax.tree.leaves(item)) or jax.device_count() < 2:
        return ()  # JAX is not asked for its devices where it is not used
    root = tree.flatten(item, spanning=True)
    ranges: dict[str, list[list[int]]] = {}
    texts: dict[Any, str] = {}
    for index, (_, leaf) in enumerate(tree.iter_leaves(root)):
        sharding = getattr(leaf.data, "sharding", None)
        if not isinstance(sharding, jax.sharding.NamedSharding) or sharding.mesh.size < 2:
            continue
        if sharding not in texts:
            made = ocp_metadata.NamedShardingMetadata.from_jax_sharding(sharding)
            devices = sharding.mesh.devices
            if devices is not None and devices.ravel().tolist() == jax.devices():
                made.device_mesh = None  # all, in their order: thousands of numbers less
            texts[sharding] = made.to_serialized_string()
        found = ranges.setdefault(texts[sharding], [])
        if found and found[-1][1] == index:
            found[-1][1] = index + 1
        else:
            found.append([index, index + 1])
    return tuple(ranges.items())


_OF_FIRST = ("JaxRandomKeyCheckpointHandler", "NumpyRandomKeyCheckpointHandler")
"""Handlers of what each process may have its own of, and saves process 0's."""


def from_first(records: Mapping[str, ItemRecord], single: bool) -> list[str]:
    """Globs of the leaves of items of which process 0's count, as in Orbax.

    JSON, random keys that are not spread over processes, and files of handlers.
    """
    chosen = [
        name
        for name, record in records.items()
        if record.kind != "tree" or record.handler.endswith(_OF_FIRST)
    ]
    return ["**" if single else f"{escape(tree.escape(name))}/**" for name in chosen]


def _parse_sharding(text: str) -> ocp_metadata.ShardingMetadata:
    fields = json.loads(text)
    # JSON has no tuples: an axis may be split over several mesh axes.
    spec = [tuple(part) if isinstance(part, list) else part for part in fields["partition_spec"]]
    return ocp_metadata.NamedShardingMetadata.from_deserialized_dict(
        {**fields, "partition_spec": spec}
    )
