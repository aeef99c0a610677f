"""Planning the merge of two or more trees from manifests alone. Needs no JAX and reads no data."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vcjax import tree
from vcjax.errors import MergeError
from vcjax.history import Manifest
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
            Of more than two sides "theirs" is any but the first, and "both" are
            those in `changed`.
        base: what they come from has: a manifest entry, a `Node`, or `ABSENT`.
        sides: what each side has, ours first.
        changed: the sides that changed it, by their place in `sides`.
    """

    path: str
    verdict: Verdict
    base: Any
    sides: tuple[Any, ...]
    changed: tuple[int, ...]

    @property
    def ours(self) -> Any:
        """What the first side has."""
        return self.sides[0]

    @property
    def theirs(self) -> Any:
        """What the second side has."""
        return self.sides[1]

    @property
    def is_conflict(self) -> bool:
        """Whether somebody has to decide."""
        return self.verdict in ("conflict", "structure")


@dataclass(frozen=True)
class MergePlan:
    """A merge by history, leaf by leaf.

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
        rows = [
            {"path": d.path, "verdict": d.verdict, "changed": list(d.changed)}
            for d in self.decisions
        ]
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
    return plan_octopus(base, (ours, theirs), {}, digest_of)


def plan_octopus(
    base: Any,
    sides: Sequence[Any],
    pairs: Mapping[tuple[int, int], Any],
    digest_of: Callable[[Any], str],
) -> MergePlan:
    """Plans the merge of N trees.

    A side gives way at a leaf to another that has changed it, if it has not itself: if
    it is there as what *these two* come from. Where the sides come from one commit,
    that is its tree for all of them; but branches that left a line at different commits
    have seen different states of it.

    Args:
        base: root of the tree that all sides come from; `ABSENT` if there is none.
        sides: root of each, ours first.
        pairs: {(i, j): root of what sides i < j come from} where that is not `base`.
        digest_of: digest of a node of any of these trees, leaf or not.
    """
    planner = _Planner(len(sides), base, pairs, digest_of)
    root = planner.merge(None, planner.roots, tuple(sides))
    return MergePlan(root, tuple(planner.decisions))


class _Planner:
    """Goes down N trees side by side.

    Attributes:
        roots: of the base of all, then of the other bases, each once.
        decisions: those made so far.
    """

    def __init__(
        self,
        count: int,
        base: Any,
        pairs: Mapping[tuple[int, int], Any],
        digest_of: Callable[[Any], str],
    ):
        self._digest_of = digest_of
        distinct = list({id(root): root for root in (base, *pairs.values())}.values())
        places = {id(root): at for at, root in enumerate(distinct)}
        self._which = {
            (i, j): places[id(pairs.get((min(i, j), max(i, j)), base))]
            for i in range(count)
            for j in range(count)
        }
        self.roots = tuple(distinct)
        self.decisions: list[Decision] = []

    def _digest(self, node: Any) -> str | None:
        return None if node is ABSENT else self._digest_of(node)

    def merge(self, path: str | None, bases: tuple[Any, ...], sides: tuple[Any, ...]) -> Any:
        """The merged node at `path`, or a `Decision` that stands for a conflict."""
        before = [self._digest(node) for node in bases]
        now = [self._digest(node) for node in sides]

        def decide(verdict: Verdict, changed: Sequence[int]) -> Decision:
            base = self._base_of(bases, before, changed)
            decision = Decision(path or "", verdict, base, sides, tuple(changed))
            self.decisions.append(decision)
            return decision

        if now.count(now[0]) == len(now):
            is_new = now[0] != before[0]
            decide("same" if is_new else "unchanged", range(len(now)) if is_new else ())
            return sides[0]
        changed, is_plain = self._changed(before, now)
        first = sides[changed[0]]
        can_descend = all(_can_descend(first, sides[at]) for at in changed)
        if len({now[at] for at in changed}) == 1 and (is_plain or not can_descend):
            one = "ours" if changed[0] == 0 else "theirs"
            decide(one if len(changed) == 1 else "same", changed)
            return first
        if can_descend:
            return self._descend(path, bases, sides, first)
        if all(_is_leaf(sides[at]) and _same_spec(first, sides[at]) for at in changed):
            return decide("conflict", changed)
        return decide("structure", changed)

    def _changed(
        self, before: Sequence[str | None], now: Sequence[str | None]
    ) -> tuple[list[int], bool]:
        """The sides that give way to no other, and whether all others give way to these."""
        count = range(len(now))
        to = {
            i: [j for j in count if now[i] != now[j] and now[i] == before[self._which[i, j]]]
            for i in count
        }
        changed = [i for i in count if not to[i]] or list(count)
        values = {now[i] for i in changed}
        is_plain = all(now[i] in values or any(now[j] in values for j in to[i]) for i in count)
        return changed, is_plain

    def _base_of(
        self, bases: Sequence[Any], before: Sequence[str | None], changed: Sequence[int]
    ) -> Any:
        """What those that changed a node come from, if they agree on that; else all."""
        found = {self._which[i, j] for i in changed for j in changed if i != j}
        return bases[min(found)] if len({before[at] for at in found}) == 1 else bases[0]

    def _descend(
        self, path: str | None, bases: tuple[Any, ...], sides: tuple[Any, ...], like: Node
    ) -> Node:
        before = [_children_of_kind(node, like) for node in bases]
        there = [_children_of_kind(node, like) for node in sides]
        keys: list[Any] = list(dict.fromkeys(key for side in there for key in side))
        if like.kind in _SORTED:
            keys = _sorted(keys)
        merged: list[tuple[Any, Any]] = []
        for key in keys:
            child = self.merge(
                join(path, key[1]),
                tuple(children.get(key, ABSENT) for children in before),
                tuple(children.get(key, ABSENT) for children in there),
            )
            if child is not ABSENT:
                merged.append((key[1], child))
        return Node(like.kind, tuple(k for k, _ in merged), tuple(c for _, c in merged), like.name)


def _children_of_kind(node: Any, like: Node) -> dict[Any, Any]:
    """The children of a container of the same kind; else none."""
    return _children(node) if isinstance(node, Node) and node.kind == like.kind else {}


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, Node) and node is not ABSENT


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


def digest_lookup(*manifests: Manifest) -> Callable[[Any], str]:
    """A function that gives the digest of any node of these manifests."""
    inner: dict[int, bytes] = {}
    for manifest in manifests:
        inner.update(manifest.node_digests)

    def digest_of(node: Any) -> str:
        return inner[id(node)].hex() if isinstance(node, tree.Node) else node.digest

    return digest_of
