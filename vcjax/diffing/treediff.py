"""`TreeDiff`: the changes between two trees, as data and as text. Needs no JAX."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vcjax.tree import LeafSpec, select

Status = Literal["added", "removed", "changed", "moved", "unchanged"]
MARKS = {"added": "+", "removed": "-", "changed": "~", "moved": ">", "unchanged": "="}


@dataclass(frozen=True)
class LeafChange:
    """What happened to one leaf.

    Attributes:
        path: leaf path, in the new tree where it is there.
        status: added, removed, changed, moved or unchanged.
        old: its spec in the old tree, or None.
        new: its spec in the new tree, or None.
        stats: figures of the difference (see `leaf_statistics`), for changed
            leaves that are arrays of numbers of one shape; None for others, such as keys.
        old_path: leaf path in the old tree, for moved leaves.
    """

    path: str
    status: Status
    old: LeafSpec | None
    new: LeafSpec | None
    stats: Mapping[str, float] | None = None
    old_path: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "path": self.path,
            "status": self.status,
            "old": _spec_dict(self.old),
            "new": _spec_dict(self.new),
            "stats": dict(self.stats) if self.stats is not None else None,
            "old_path": self.old_path,
        }

    def describe(self) -> str:
        """The specs, and what became of them: "float32[2,3]", "float32[2] → float32[3]"."""
        if self.status == "moved":
            return f"{self.new} from {self.old_path}"
        if self.old is None or self.new is None or str(self.old) == str(self.new):
            return str(self.new or self.old)
        return f"{self.old} → {self.new}"


def _figures(stats: Mapping[str, float]) -> str:
    relative = f"{stats['relative_l2']:.2%}" if stats["norm_old"] or not stats["l2"] else "from 0"
    return (
        f"  l2 {stats['l2']:.4g} ({relative}), max {stats['max_abs']:.4g}, "
        f"{stats['fraction_changed']:.2%} of elements"
    )


def _spec_dict(spec: LeafSpec | None) -> dict[str, Any] | None:
    return None if spec is None else {"dtype": spec.dtype, "shape": list(spec.shape)}


@dataclass(frozen=True)
class TreeDiff:
    """The changes between two trees.

    Attributes:
        changes: one per leaf path of either tree, unchanged ones included, in
            the order of the new tree; removed leaves last.
        structure: paths of containers whose kind changed, or that are empty, in
            one tree alone and without a leaf in their place: differences that no
            leaf shows.
    """

    changes: tuple[LeafChange, ...]
    structure: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the two trees are equal."""
        return not self.structure and all(c.status == "unchanged" for c in self.changes)

    def __bool__(self) -> bool:
        return not self.is_empty

    def with_status(self, *statuses: Status) -> tuple[LeafChange, ...]:
        """The changes that have one of these statuses."""
        return tuple(change for change in self.changes if change.status in statuses)

    def matching(self, globs: list[str] | str | None) -> "TreeDiff":
        """The part of the diff whose leaf paths match any of `globs`; all of it for None.

        Raises:
            TreeError: a glob matches no leaf of either tree.
        """
        if globs is None:
            return self
        chosen = set(select([change.path for change in self.changes], globs))
        return TreeDiff(tuple(change for change in self.changes if change.path in chosen))

    @property
    def counts(self) -> dict[str, int]:
        """{status: number of leaves}, every status present."""
        found = Counter(change.status for change in self.changes)
        return {status: found[status] for status in MARKS}

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; unchanged leaves are counted, not listed."""
        shown = [change.to_dict() for change in self.changes if change.status != "unchanged"]
        return {"counts": self.counts, "changes": shown, "structure": list(self.structure)}

    def __str__(self) -> str:
        counts = self.counts
        summary = ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "no leaves"
        rows = [change for change in self.changes if change.status != "unchanged"]
        width = max((len(change.path) for change in rows), default=0)
        lines = [summary]
        for change in rows:
            line = f"{MARKS[change.status]} {change.path:<{width}}  {change.describe()}"
            if change.stats is not None:
                line += _figures(change.stats)
            lines.append(line)
        lines += [f"! {path or '(root)'}  container changed" for path in self.structure]
        return "\n".join(lines)
