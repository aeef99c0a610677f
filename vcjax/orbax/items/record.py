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

from vcjax.errors import CorruptionError, UnknownFormatError
from vcjax.history import Commit, checked_metadata
from vcjax.orbax.orbax_internals import STANDARD

Kind = Literal["tree", "json", "files"]

DEFAULT_ITEM = "default"
"""Orbax's name for the item of a step that was saved as one object."""


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

    def encode(self) -> dict[str, object]:
        """As JSON types."""
        fields: dict[str, object] = {"kind": self.kind}
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
    metrics: object = None
    custom_metadata: Mapping[str, object] = field(default_factory=dict)
    root_metadata: Mapping[str, object] = field(default_factory=dict)

    def encode(self, step: int | None) -> dict[str, object]:
        """The metadata of the commit."""
        fields: dict[str, object] = {}
        if not self.single:
            fields["items"] = {name: record.encode() for name, record in self.items.items()}
        elif self.items[DEFAULT_ITEM] != ItemRecord():
            fields["item"] = self.items[DEFAULT_ITEM].encode()
        for name in ("metrics", "custom_metadata", "root_metadata"):
            if value := getattr(self, name):
                fields[name] = value
        body: dict[str, object] = {} if step is None else {"step": step}
        return {**body, "orbax": fields} if fields else body

    @classmethod
    def of(cls, commit: Commit) -> "StepRecord":
        """The record in the metadata of a commit; commits made otherwise are single trees.

        Raises:
            CorruptionError: members of it are not of the types that they have to be.
        """
        fields = commit.metadata.get("orbax")
        fields = fields if isinstance(fields, dict) else {}
        _check_types(commit, fields)
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


def _check_types(commit: Commit, fields: Mapping[str, Any]) -> None:
    """Anybody may have written the metadata of a commit."""
    dicts = ("items", "item", "custom_metadata", "root_metadata")
    wrong = [name for name in dicts if not isinstance(fields.get(name, {}), dict)]
    items = {} if "items" in wrong else fields.get("items", {})
    records = [items[name] for name in items] + [fields.get("item", {})]
    if wrong or not all(map(_is_record, records)):
        raise CorruptionError(
            f"commit {commit.digest[:8]} garbles what its metadata say of items of Orbax",
            hint="`repo.restore` gives its tree all the same",
        )


def _is_record(fields: Any) -> bool:
    if not isinstance(fields, dict) or not isinstance(fields.get("handler", ""), str):
        return False
    shardings = fields.get("shardings", [])
    return isinstance(shardings, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in shardings
    )


def step_metadata(given: Mapping[str, object] | None) -> dict[str, object]:
    """The `custom_metadata=` of a step, as JSON types.

    Raises:
        ValueError: it is no dict.
        VcjaxError: something in it that JSON cannot hold.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"custom_metadata is a {type(given).__qualname__}, and no dict")
    return checked_metadata(dict(given or {}), "custom_metadata")


# -- metrics -------------------------------------------------------------------


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of a step: what Orbax lets them be, and the numbers among them.

    Attributes:
        plain: as given, as JSON types; None without any.
        numbers: by name; those in nested dicts by their path, "eval/loss". These are what
            `best:NAME` and `vcjax log` know. Scalars of NumPy and JAX are numbers.
    """

    plain: object = None
    numbers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, given: object) -> "StepMetrics":
        """The metrics that `save` was given.

        Raises:
            VcjaxError: something that JSON cannot hold.
        """
        if given is None:
            return cls()
        plain = checked_metadata(given, "metrics")
        return cls(plain, dict(sorted(_numbers(plain, "").items())))

    @property
    def nested(self) -> object:
        """The metrics as given, if they are more than their numbers by name; else None."""
        return None if self.plain is None or self._is_flat else self.plain

    @property
    def _is_flat(self) -> bool:
        """Whether the numbers say it all; a NaN is as good as any other."""
        return isinstance(self.plain, Mapping) and all(
            name in self.numbers and (value == self.numbers[name] or value != value)
            for name, value in self.plain.items()
        )


def _numbers(value: object, name: str) -> dict[str, float]:
    if isinstance(value, int | float) and name:
        return {name: float(value)}
    found: dict[str, float] = {}
    if isinstance(value, Mapping):
        for key, child in value.items():
            found.update(_numbers(child, f"{name}/{key}" if name else key))
    return found


def metrics_of(commit: Commit) -> object:
    """The metrics of a step as they were given; None without any."""
    fields = commit.metadata.get("orbax")
    whole = fields.get("metrics") if isinstance(fields, dict) else None
    return whole if whole is not None else dict(commit.metrics) or None
