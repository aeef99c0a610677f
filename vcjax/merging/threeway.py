"""Planning a three-way merge from manifests alone. Needs no JAX and reads no data."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vcjax.errors import MergeError
from vcjax.tree import Node, join, map_leaves

Verdict = Literal["unchanged", "ours", "theirs", "same", "conflict", "structure"]

_SORTED = ("dict", "defaultdict", "frozendict", "nnx_state")
_MAPPINGS = ("dict", "ordereddict", "defaultdict", "frozendict", "nnx_state", "custom")


class _Absent:
    """Stands for what a side does not have."""

    digest = ""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Any = _Absent()


@dataclass(frozen=True)
class Decision:
    """What happens to one leaf, or to a subtree that one side took as a whole.

    Attributes:
        path: leaf path, or path of the subtree.
        verdict: "unchanged"; "ours" or "theirs" where one side changed it;
            "same" where both changed it alike; "conflict" where both changed the
            content of a leaf; "structure" where they cannot be reconciled by
            numbers (deleted here and changed there; another shape, dtype or kind).
        base: what the base has: a manifest entry, a `Node`, or `ABSENT`.
        ours: likewise.
        theirs: likewise.
    """

    path: str
    verdict: Verdict
    base: Any
    ours: Any
    theirs: Any

    @property
    def is_conflict(self) -> bool:
        """Whether somebody has to decide."""
        return self.verdict in ("conflict", "structure")


@dataclass(frozen=True)
class MergePlan:
    """A three-way merge, leaf by leaf.

    Attributes:
        root: the merged tree, with a `Decision` in place of every conflict.
        decisions: every decision, in tree order; unchanged subtrees are one.
    """

    root: Any
    decisions: tuple[Decision, ...]

    @property
    def conflicts(self) -> dict[str, Decision]:
        """{path: decision} of everything that somebody has to decide."""
        return {d.path: d for d in self.decisions if d.is_conflict}

    def without(self, settled: Mapping[str, Any]) -> "MergePlan":
        """The plan less the decisions about these paths."""
        rest = tuple(d for d in self.decisions if d.path not in settled)
        return replace(self, decisions=rest)

    @property
    def counts(self) -> dict[str, int]:
        """{verdict: how often}."""
        return dict(Counter(decision.verdict for decision in self.decisions))

    def resolved(self, choices: Mapping[str, Any]) -> Any:
        """The merged tree with every conflict replaced by a choice.

        Args:
            choices: {path: manifest entry, `Node` or `ABSENT`} for every conflict.

        Raises:
            MergeError: a conflict has no choice.
        """
        missing = [path for path in self.conflicts if path not in choices]
        if missing:
            raise MergeError(f"unresolved: {', '.join(missing)}")
        root = map_leaves(lambda path, leaf: choices.get(path, leaf), self.root)
        return _without_absent(root)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        rows = [{"path": d.path, "verdict": d.verdict} for d in self.decisions]
        return {"counts": self.counts, "decisions": rows}


def _without_absent(root: Any) -> Any:
    if not isinstance(root, Node):
        return root
    pairs = [
        (key, _without_absent(child))
        for key, child in zip(root.keys, root.children, strict=True)
        if child is not ABSENT
    ]
    return Node(root.kind, tuple(k for k, _ in pairs), tuple(c for _, c in pairs), root.name)


def plan_merge(base: Any, ours: Any, theirs: Any, digest_of: Callable[[Any], str]) -> MergePlan:
    """Plans the merge of two trees that come from a third.

    Args:
        base: root of the common ancestor's tree; `ABSENT` for unrelated histories.
        ours: root of one side: `Node`s with manifest entries at the leaves.
        theirs: root of the other.
        digest_of: digest of a node of any of the three, leaf or not.
    """
    planner = _Planner(digest_of)
    root = planner.merge(None, base, ours, theirs)
    return MergePlan(root, tuple(planner.decisions))


class _Planner:
    def __init__(self, digest_of: Callable[[Any], str]):
        self._digest_of = digest_of
        self.decisions: list[Decision] = []

    def _same(self, one: Any, other: Any) -> bool:
        if one is ABSENT or other is ABSENT:
            return one is other
        return self._digest_of(one) == self._digest_of(other)

    def merge(self, path: str | None, base: Any, ours: Any, theirs: Any) -> Any:
        """The merged node at `path`, or a `Decision` that stands for a conflict."""

        def decide(verdict: Verdict) -> Decision:
            decision = Decision(path or "", verdict, base, ours, theirs)
            self.decisions.append(decision)
            return decision

        if self._same(ours, theirs):
            decide("unchanged" if self._same(base, ours) else "same")
            return ours
        if self._same(base, theirs):
            decide("ours")
            return ours
        if self._same(base, ours):
            decide("theirs")
            return theirs
        if _can_descend(ours, theirs):
            return self._descend(path, base, ours, theirs)
        both_leaves = not any(isinstance(n, Node) or n is ABSENT for n in (ours, theirs))
        if both_leaves and _same_spec(ours, theirs):
            return decide("conflict")
        return decide("structure")

    def _descend(self, path: str | None, base: Any, ours: Node, theirs: Node) -> Node:
        before = _children(base) if isinstance(base, Node) and base.kind == ours.kind else {}
        mine, yours = _children(ours), _children(theirs)
        keys = list(mine) + [key for key in yours if key not in mine]
        if ours.kind in _SORTED:
            keys = _sorted(keys)
        merged: list[tuple[Any, Any]] = []
        for key in keys:
            child = self.merge(
                join(path, key[1]),
                before.get(key, ABSENT),
                mine.get(key, ABSENT),
                yours.get(key, ABSENT),
            )
            if child is not ABSENT:
                merged.append((key[1], child))
        return Node(ours.kind, tuple(k for k, _ in merged), tuple(c for _, c in merged), ours.name)


def _children(node: Node) -> dict[Any, Any]:
    """{(type, key): child}: True, 1 and 1.0 are three keys here, though one to a dict."""
    return {
        (type(key).__name__, key): child
        for key, child in zip(node.keys, node.children, strict=True)
    }


def _sorted(keys: list[Any]) -> list[Any]:
    """Keys in the order in which `vcjax.tree.flatten` puts them: equal trees, equal digests."""
    try:
        return sorted(keys, key=lambda key: key[1])
    except TypeError:  # one side added text, the other numbers
        return sorted(keys)


def _can_descend(ours: Any, theirs: Any) -> bool:
    """Whether two containers can be merged child by child."""
    if not isinstance(ours, Node) or not isinstance(theirs, Node):
        return False
    if (ours.kind, ours.name) != (theirs.kind, theirs.name):
        return False
    return ours.kind in _MAPPINGS or len(ours.keys) == len(theirs.keys)


def _same_spec(ours: Any, theirs: Any) -> bool:
    one, other = ours.spec, theirs.spec
    return (one.dtype, one.shape, one.is_value) == (other.dtype, other.shape, other.is_value)
