"""Figures of whole modules, combined from those of their leaves. Needs no JAX."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vcjax.diffing.treediff import LeafChange

_COUNTS = ("elements", "changed", "sign_flips", "nan_old", "nan_new", "inf_old", "inf_new")
_SIZES = ("update_bytes", "dense_bytes")
_JOINED = (
    *("norm_old", "norm_new", "relative_l2", "cosine", "alignment"),
    *("nan_old", "nan_new", "inf_old", "inf_new", "nonfinite_old", "nonfinite_new"),
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
            unchanged leaves are not read and do not count. What is None of one of
            them is None here.
    """

    path: str
    depth: int
    counts: Mapping[str, int]
    stats: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        stats = dict(self.stats) if self.stats is not None else None
        return {"path": self.path, "depth": self.depth, "counts": dict(self.counts), "stats": stats}


def roll_up(changes: Iterable["LeafChange"], depth: int | None) -> tuple[ModuleChange, ...]:
    """Leaves grouped by path prefix, with their figures combined exactly.

    Args:
        changes: of leaves.
        depth: how many path segments make a module; a leaf that has no more
            stands for itself. 0 is the whole tree; None gives every prefix of
            every depth, parents before children, leaves themselves excluded.
    """
    groups: dict[str, list[LeafChange]] = defaultdict(list)
    for change in changes:
        segments = change.path.split("/")
        lengths = range(len(segments)) if depth is None else [min(depth, len(segments))]
        for length in lengths:
            groups["/".join(segments[:length])].append(change)
    return tuple(_module(path, members) for path, members in groups.items())


def _module(path: str, members: Sequence["LeafChange"]) -> ModuleChange:
    figures = [change.stats for change in members if change.stats is not None]
    counts = Counter(change.status for change in members)
    depth = path.count("/") + 1 if path else 0
    return ModuleChange(path, depth, dict(counts), combined(figures) if figures else None)


def combined(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several leaves, or parts of one, joined end to end, from those of each.

    Norms add as squares and products of vectors as products, so the result is what
    one pass over all would have found, up to rounding in float64.
    """
    if len(figures) == 1 and "nonfinite_old" in figures[0]:
        return dict(figures[0])
    unknown = {name: None for part in figures for name, value in part.items() if value is None}
    if unknown:
        figures = [{name: value or 0 for name, value in part.items()} for part in figures]
    l2, norm_old, norm_new = (
        math.hypot(*(part[name] for part in figures)) for name in ("l2", "norm_old", "norm_new")
    )
    total: dict[str, Any] = {name: sum(part[name] for part in figures) for name in _COUNTS}
    sizes = [name for name in _SIZES if name in figures[0]]
    total |= {name: sum(part[name] for part in figures) for name in sizes}
    return total | {
        "nonfinite_old": total["nan_old"] + total["inf_old"],
        "nonfinite_new": total["nan_new"] + total["inf_new"],
        "l2": l2,
        "relative_l2": l2 / norm_old if norm_old else (math.inf if l2 else 0.0),
        "max_abs": max(part["max_abs"] for part in figures),
        "cosine": _joined(
            figures, "cosine", "norm_new", norm_old, norm_new, float(norm_old == norm_new)
        ),
        "alignment": _joined(figures, "alignment", "l2", norm_old, l2, 0.0),
        "norm_old": norm_old,
        "norm_new": norm_new,
        "fraction_changed": total["changed"] / max(1, total["elements"]),
        "learning_rate_scale": l2 / math.sqrt(total["changed"]) if total["changed"] else 0.0,
        **{name: None for name in unknown if name in _JOINED},
    }


def _joined(
    figures: Sequence[Mapping[str, Any]],
    cosine: str,
    other: str,
    norm_old: float,
    norm: float,
    neither: float,
) -> float:
    """The cosine between vectors joined end to end: of old, and of what has the norm `other`."""
    if not norm_old or not norm:
        return neither
    # An inner product is cosine · norm · norm; divided first, nothing overflows.
    parts = (
        part[cosine] * (part["norm_old"] / norm_old) * (part[other] / norm) for part in figures
    )
    return min(1.0, max(-1.0, math.fsum(parts)))
