"""Figures of whole modules, combined from those of their leaves. Needs no JAX."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COUNTS = (
    *("elements", "changed", "sign_flips", "nan_old", "nan_new", "inf_old", "inf_new"),
    *("nonfinite_old", "nonfinite_new", "update_bytes", "dense_bytes"),
)


@dataclass(frozen=True)
class ModuleChange:
    """What happened to the leaves below one path.

    Attributes:
        path: path prefix, "" for the whole tree.
        depth: how many segments it has.
        counts: {status: number of leaves}; statuses without leaves are absent.
        stats: the figures of its measured leaves together, None if there are none.
            Norms, cosine and fractions are those of the leaves joined end to end:
            unchanged leaves are not read and do not count.
    """

    path: str
    depth: int
    counts: Mapping[str, int]
    stats: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        stats = dict(self.stats) if self.stats is not None else None
        return {"path": self.path, "depth": self.depth, "counts": dict(self.counts), "stats": stats}


def roll_up(changes: Iterable[Any], depth: int | None) -> tuple[ModuleChange, ...]:
    """Leaves grouped by path prefix, with their figures combined exactly.

    Args:
        changes: `LeafChange`s.
        depth: how many path segments make a module; a leaf that has no more
            stands for itself. 0 is the whole tree; None gives every prefix of
            every depth, parents before children, leaves themselves excluded.
    """
    groups: dict[str, list[Any]] = defaultdict(list)
    for change in changes:
        segments = change.path.split("/")
        lengths = range(len(segments)) if depth is None else [min(depth, len(segments))]
        for length in lengths:
            groups["/".join(segments[:length])].append(change)
    return tuple(_module(path, members) for path, members in groups.items())


def _module(path: str, members: Sequence[Any]) -> ModuleChange:
    figures = [change.stats for change in members if change.stats is not None]
    counts = Counter(change.status for change in members)
    depth = path.count("/") + 1 if path else 0
    return ModuleChange(path, depth, dict(counts), combined(figures) if figures else None)


def combined(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several leaves joined end to end, from those of each (`leaf_statistics`)."""
    l2, norm_old, norm_new = (
        math.hypot(*(leaf[name] for leaf in figures)) for name in ("l2", "norm_old", "norm_new")
    )
    total: dict[str, Any] = {
        name: sum(leaf[name] for leaf in figures) for name in _COUNTS if name in figures[0]
    }
    cosine = 1.0 if norm_old == norm_new else 0.0
    if norm_old and norm_new:
        # The inner product of a leaf is cosine · norm · norm; divided first, nothing overflows.
        parts = (
            leaf["cosine"] * (leaf["norm_old"] / norm_old) * (leaf["norm_new"] / norm_new)
            for leaf in figures
        )
        cosine = min(1.0, max(-1.0, math.fsum(parts)))
    return total | {
        "l2": l2,
        "relative_l2": l2 / norm_old if norm_old else (math.inf if l2 else 0.0),
        "max_abs": max(leaf["max_abs"] for leaf in figures),
        "cosine": cosine,
        "norm_old": norm_old,
        "norm_new": norm_new,
        "fraction_changed": total["changed"] / max(1, total["elements"]),
        "learning_rate_scale": l2 / math.sqrt(total["changed"]) if total["changed"] else 0.0,
    }
