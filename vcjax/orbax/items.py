"""The items of a step: how they lie in the tree of its commit, and what its metadata say of them.

A step that was saved as one object is a commit of that object. One that was saved as
several, by `Composite`, is a commit of {item name: object}. What cannot be read from the
tree is in the commit's metadata, under "orbax":

    item              of a single object: its record
    items             of several: {name: record}
    metrics           as given, where they are more than {name: number}
    custom_metadata   of the step
    root_metadata     of the manager

A record is {"kind", "handler"} and, where there are any, "custom_metadata" and "shardings".
Without "orbax", a commit is a single tree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from glob import escape
from typing import Any, Literal

import jax
import numpy as np
from orbax.checkpoint import metadata as ocp_metadata

from vcjax import tree
from vcjax.errors import UnknownFormatError
from vcjax.history import Commit, LeafEntry
from vcjax.repo import Repository

Kind = Literal["tree", "json", "files"]

DEFAULT_ITEM = "default"
"""Orbax's name for the item of a step that was saved as one object."""

STANDARD = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
"""What Orbax calls the handler of trees. A name, which nothing is imported by."""


@dataclass(frozen=True)
class ItemRecord:
    """What the metadata of a commit say of one item.

    Attributes:
        kind: "tree": leaves as they were given; "json": plain values; "files": the files
            that a handler wrote, as arrays of bytes in dicts that are its folders.
        handler: Orbax's name for the class of the handler that saved it.
        custom_metadata: given with the item.
        shardings: (sharding as Orbax serialises it, ranges [start, stop) of leaves in tree
            order); only of leaves on meshes of two or more devices.
    """

    kind: Kind = "tree"
    handler: str = STANDARD
    custom_metadata: Any = None
    shardings: tuple[tuple[str, list[list[int]]], ...] = ()

    def encode(self) -> dict[str, Any]:
        """As JSON types."""
        fields: dict[str, Any] = {"kind": self.kind, "handler": self.handler}
        if self.custom_metadata is not None:
            fields["custom_metadata"] = self.custom_metadata
        if self.shardings:
            fields["shardings"] = [[text, ranges] for text, ranges in self.shardings]
        return fields

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> "ItemRecord":
        """The record in the metadata of a commit."""
        kind = fields.get("kind", "tree")
        if kind not in ("tree", "json", "files"):
            raise UnknownFormatError(
                f"an item is of the unknown kind {kind!r}",
                hint="upgrade vcjax: a newer version wrote this",
            )
        shardings = tuple((text, ranges) for text, ranges in fields.get("shardings", ()))
        handler, custom = fields.get("handler", STANDARD), fields.get("custom_metadata")
        return cls(kind, handler, custom, shardings)


@dataclass(frozen=True)
class StepRecord:
    """What the metadata of a commit say of a step, besides its number.

    Attributes:
        items: {item name: record}.
        single: whether the step was saved as one object, whose name is `DEFAULT_ITEM`.
        metrics: as given, if they are more than {name: number}.
        custom_metadata: of the step.
        root_metadata: of the manager.
    """

    items: Mapping[str, ItemRecord]
    single: bool
    metrics: Any = None
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    root_metadata: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, step: int | None) -> dict[str, Any]:
        """The metadata of the commit."""
        fields: dict[str, Any] = {}
        if not self.single:
            fields["items"] = {name: record.encode() for name, record in self.items.items()}
        elif self.items[DEFAULT_ITEM] != ItemRecord():
            fields["item"] = self.items[DEFAULT_ITEM].encode()
        for name in ("metrics", "custom_metadata", "root_metadata"):
            if value := getattr(self, name):
                fields[name] = value
        body: dict[str, Any] = {} if step is None else {"step": step}
        return {**body, "orbax": fields} if fields else body

    @classmethod
    def of(cls, commit: Commit) -> "StepRecord":
        """The record in the metadata of a commit; commits made otherwise are single trees."""
        fields = commit.metadata.get("orbax")
        fields = fields if isinstance(fields, dict) else {}
        single = "items" not in fields
        found = {DEFAULT_ITEM: fields.get("item", {})} if single else fields["items"]
        return cls(
            {name: ItemRecord.decode(record) for name, record in found.items()},
            single,
            fields.get("metrics"),
            fields.get("custom_metadata", {}),
            fields.get("root_metadata", {}),
        )


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
