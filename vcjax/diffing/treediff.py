"""`TreeDiff`: the changes between two trees, as data and as text. Needs no JAX.

What a diff holds, from the outside in:

- `TreeDiff.changes`: one `LeafChange` per leaf: `path`, `status`, `old`, `new`, `stats`, and
  `old_path` (moved leaves), `relation` and `note` (what was kept of a leaf that was cast,
  transposed, grown, …). A leaf that moved *and* changed has status "moved" and `stats` that
  are not None; one that only moved has `stats` None.
- `TreeDiff.structure`: containers that differ in a way that no leaf shows.
- `TreeDiff.structural_divergence`, `.contextual_divergence`: MGit's two views in a number.
- `TreeDiff.rollup(depth)`: `ModuleChange`s, figures and counts per path prefix.
- `TreeDiff.three_way`: a `ThreeWay` where a base was given, else None.

`LeafChange.stats` is a mapping. Always in it (see `leaf_statistics`): elements, changed,
fraction_changed, l2, relative_l2, max_abs, cosine, norm_old, norm_new, sign_flips, nan_old,
nan_new, inf_old, inf_new, nonfinite_old, nonfinite_new, rows, rows_touched, columns,
columns_touched, blocks, blocks_touched, coverage, alignment, learning_rate_scale, scale,
scale_residual, update, update_rank, update_bytes, dense_bytes. Between two commits `coverage` may
be less than 1: chunks of the leaf are equal and were not read, and figures that need them
(`OF_WHOLE_LEAVES`) are None, unless `stats="whole"`. With `stats="full"`, which reads them too,
also (see `spectrum`): singular_values, effective_rank, energy, spectral_norm, histogram.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vcjax.diffing.agreement import ThreeWay
from vcjax.diffing.divergence import divergences
from vcjax.diffing.modules import ModuleChange, roll_up
from vcjax.diffing.renderers import render
from vcjax.diffing.small_values import excerpt, transition_texts, value_document
from vcjax.errors import StorageError
from vcjax.tree import LeafSpec, select

Status = Literal["added", "removed", "changed", "moved", "unchanged"]
MARKS = {"added": "+", "removed": "-", "changed": "~", "moved": ">", "unchanged": "="}

REPR_LINES, REPR_WIDTH = 8, 100
"""How much of a diff its repr shows; all of it is in `str` of it."""

Relation = Literal["cast", "rounded", "transposed", "reshaped", "grown", "shrunk", "permuted"]
"""How the content of a leaf follows from what it was; see `relation_of`."""


@dataclass(frozen=True)
class LeafChange:
    """What happened to one leaf.

    Attributes:
        path: leaf path, in the new tree where it is there.
        status: added, removed, changed, moved or unchanged.
        old: its spec in the old tree, or None.
        new: its spec in the new tree, or None.
        stats: figures of the difference (see `leaf_statistics`), for leaves whose
            content changed and that are arrays of numbers of one shape and dtype; None
            for others, such as keys.
        old_path: leaf path in the old tree, for moved leaves. A moved leaf with
            `stats` changed as well.
        shared: the fraction of its chunks that both sides have alike, by digest.
        relation: the kind of what was kept: cast, rounded, transposed, reshaped,
            grown, shrunk or permuted; None if nothing was found, or not looked for.
        note: the same in words: "bfloat16 of the same values", "transposed",
            "grew 3 rows, the rest equal", "permuted rows".
        old_value: what the leaf was, if it is not unchanged and small enough to be shown:
            a plain value, or a NumPy array of at most 8 elements; else None.
        new_value: what it is now, likewise.
    """

    path: str
    status: Status
    old: LeafSpec | None
    new: LeafSpec | None
    stats: Mapping[str, Any] | None = None
    old_path: str | None = None
    shared: float = 0.0
    relation: Relation | None = None
    note: str | None = None
    old_value: Any = field(default=None, compare=False)
    new_value: Any = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "path": self.path,
            "status": self.status,
            "old": _spec_dict(self.old),
            "new": _spec_dict(self.new),
            "stats": dict(self.stats) if self.stats is not None else None,
            "old_path": self.old_path,
            "relation": self.relation,
            "note": self.note,
            "old_value": value_document(self.old_value),
            "new_value": value_document(self.new_value),
        }

    @property
    def content_changed(self) -> bool:
        """Whether the leaf is on both sides with contents that differ."""
        return self.status == "changed" or (self.status == "moved" and self.shared < 1)

    def describe(self) -> str:
        """The specs, small values, and what became of them.

        Such as: "float32[2,3]", "float32[2] → float32[3]", "str adam → sgd".
        """
        if self.status == "moved":
            changed = ", changed" if self.content_changed else ""
            return f"{self.outline()} from {self.old_path}{changed}"
        return self.outline() + (f" ({self.note})" if self.note else "")

    def outline(self) -> str:
        """The specs, and the values that are small: "int 91 → 101", "int 1 → float 1.5"."""
        old, new, same = self.old, self.new, str(self.old) == str(self.new)
        if self.status == "moved" and not self.content_changed:
            return str(new)
        if self.old_value is None and self.new_value is None:
            return str(new or old) if old is None or new is None or same else f"{old} → {new}"
        if self.old_value is None or self.new_value is None:
            sides = ((old, self.old_value), (new, self.new_value))
            shown = (f"{s}" if v is None else f"{s} {excerpt(v)}" for s, v in sides if s)
            return " → ".join(shown)
        before, after = transition_texts(self.old_value, self.new_value)
        return f"{old} {before} → " + (after if same else f"{new} {after}")

    def transition(self) -> str:
        """The old and the new value, "91 → 101", where both are small; else nothing."""
        if self.old_value is None or self.new_value is None:
            return ""
        return " → ".join(transition_texts(self.old_value, self.new_value))


def _figures(stats: Mapping[str, Any]) -> str:
    relative = ""
    if stats["relative_l2"] is not None:
        from_zero = stats["l2"] and not stats["norm_old"]
        relative = " (from 0)" if from_zero else f" ({stats['relative_l2']:.2%})"
    return (
        f"  l2 {stats['l2']:.4g}{relative}, max {stats['max_abs']:.4g}, "
        f"{stats['fraction_changed']:.2%} of elements"
    )


def _cut(text: str) -> str:
    return text if len(text) <= REPR_WIDTH else f"{text[: REPR_WIDTH - 1]}…"


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
        three_way: what each side did to a common base, where one was given.
        unread: why there are no figures, one line per side whose data are gone.
    """

    changes: tuple[LeafChange, ...]
    structure: tuple[str, ...] = ()
    three_way: ThreeWay | None = None
    unread: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the two trees are equal."""
        return not self.structure and all(c.status == "unchanged" for c in self.changes)

    def __bool__(self) -> bool:
        return not self.is_empty

    def with_status(self, *statuses: Status) -> tuple[LeafChange, ...]:
        """The changes that have one of these statuses."""
        return tuple(change for change in self.changes if change.status in statuses)

    def matching(self, globs: str | Sequence[str] | None) -> "TreeDiff":
        """The part of the diff whose leaf paths match any of `globs`; all of it for None.

        Raises:
            TreeError: a glob matches no leaf of either tree.
        """
        if globs is None:
            return self
        chosen = set(select([change.path for change in self.changes], globs))
        changes = tuple(change for change in self.changes if change.path in chosen)
        return TreeDiff(changes, unread=self.unread)

    @property
    def counts(self) -> dict[str, int]:
        """{status: number of leaves}, every status present."""
        found = Counter(change.status for change in self.changes)
        return {status: found[status] for status in MARKS}

    @property
    def structural_divergence(self) -> float:
        """How far the two differ in paths, shapes and kinds; see `divergences`."""
        return divergences(self.changes, self.structure)[0]

    @property
    def contextual_divergence(self) -> float:
        """How far the two differ in contents too; see `divergences`."""
        return divergences(self.changes, self.structure)[1]

    def rollup(self, depth: int | None = 1) -> tuple[ModuleChange, ...]:
        """Counts and figures per module: per path prefix of `depth` segments; see `roll_up`."""
        return roll_up(self.changes, depth)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; unchanged leaves are counted, not listed."""
        shown = [change.to_dict() for change in self.changes if change.status != "unchanged"]
        structural, contextual = divergences(self.changes, self.structure)
        document = {
            "counts": self.counts,
            "structural_divergence": structural,
            "contextual_divergence": contextual,
            "changes": shown,
            "structure": list(self.structure),
            "unread": list(self.unread),
        }
        if self.three_way is not None:
            document["three_way"] = self.three_way.to_dict()
        return document

    def to_markdown(self, title: str | None = None) -> str:
        """A report for a pull request: counts, modules, and the leaves that changed the most.

        Args:
            title: a heading to begin with.
        """
        return render("markdown", self, title=title)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "What changed",
        old: str | None = None,
        new: str | None = None,
    ) -> None:
        """Writes a report as one HTML page that needs nothing else.

        With `stats="full"` it has histograms and singular values too.

        Args:
            path: the file.
            title: of the page.
            old: what the old side is called.
            new: what the new side is called.

        Raises:
            StorageError: the file cannot be written.
        """
        page = render("html", self, title=title, old=old, new=new)
        try:
            Path(path).write_text(page, "utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error

    def __repr__(self) -> str:
        first, *rest = str(self).splitlines()
        more = [f"… and {len(rest) - REPR_LINES:,} more"] if len(rest) > REPR_LINES else []
        return "\n".join([f"<TreeDiff: {first}>", *(_cut(t) for t in rest[:REPR_LINES]), *more])

    def _repr_html_(self) -> str:
        return render("notebook", self)

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
        lines += [f"no figures: {reason}" for reason in self.unread]
        return "\n".join(lines)
