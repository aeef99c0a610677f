"""What the metadata of a commit say of a step and its items, besides the step's number.

All of it is under "orbax":

    item              of a single object: its record
    items             of several: {name: record}
    metrics           as given, where they are more than {name: number}
    custom_metadata   of the step
    root_metadata     of the manager

A record is {"kind", "handler"} and, where there are any, "custom_metadata" and "shardings".
Without "orbax", a commit is a single tree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vcjax.errors import UnknownFormatError
from vcjax.history import Commit, checked_metadata

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
        handler: Orbax's name for the class of the handler that saved it; "" if that is not
            known.
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
        fields: dict[str, Any] = {"kind": self.kind}
        if self.handler:
            fields["handler"] = self.handler
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
        custom = fields.get("custom_metadata")
        return cls(kind, fields.get("handler", ""), custom, shardings)


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
        items = {
            name: ItemRecord.decode(record) for name, record in fields.get("items", {}).items()
        }
        if single:
            known = "item" in fields
            items = {DEFAULT_ITEM: ItemRecord.decode(fields["item"]) if known else ItemRecord()}
        return cls(
            items,
            single,
            fields.get("metrics"),
            fields.get("custom_metadata", {}),
            fields.get("root_metadata", {}),
        )


def step_metadata(given: Any) -> dict[str, Any]:
    """The `custom_metadata=` of a step, as JSON types.

    Raises:
        ValueError: it is no dict.
        VcjaxError: something in it that JSON cannot hold.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"custom_metadata is a {type(given).__qualname__}, and no dict")
    return checked_metadata(dict(given or {}), "custom_metadata")
