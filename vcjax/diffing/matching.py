"""Which leaf of one tree is which leaf of another. Needs no JAX.

In this order:

1. *Names.* What has the same path in both belongs together, and subtrees of equal digests are
   done with. Names that end in a number (`layers_3`, the elements of a list) are places in a
   sequence and shift when a layer goes in or out: where there is a sign of that, a whole family
   of them is aligned by content instead (`align`).
2. *Digests.* A subtree or leaf whose content appears elsewhere, and is gone from its old
   place, has moved.
3. *Longest common subsequence.* What is left is aligned in tree order: only leaves of equal
   shape whose contents are alike, weighed by how much.

Signs of a shift are: families of different size, members that differ in shape, a content that
appears under another number, or a member that is unlike its namesake. Only the last needs data,
a sample of a small leaf per member.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vcjax.diffing.alignment import ALIKE, align
from vcjax.tree import LeafSpec, Node, escape, iter_leaves, join


class Identified(Protocol):
    """A leaf with its digest, of a tree in memory or in a manifest."""

    @property
    def spec(self) -> LeafSpec:
        """What it is."""
        ...

    @property
    def digest(self) -> str:
        """Leaf digest, hexadecimal."""
        ...

    @property
    def chunks(self) -> tuple[bytes, ...]:
        """Chunk digests where there are several."""
        ...


Root = Node | Identified
"""A tree of them, or a single one."""

Similar = Callable[[str, str], float | None]
"""How alike the contents of two leaves are, by path on either side: 0 … 1; None if unknown."""

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.S)


@dataclass(frozen=True, eq=False)
class _Subtree:
    """A part of one of the trees.

    Attributes:
        path: of its root; None for the whole tree.
        node: a `Node` or a leaf.
    """

    path: str | None
    node: Any

    def children(self) -> dict[str, "_Subtree"]:
        return {
            escape(key): _Subtree(join(self.path, key), child)
            for key, child in zip(self.node.keys, self.node.children, strict=True)
        }

    def leaves(self) -> Iterator[tuple[str, Identified]]:
        return iter_leaves(self.node, self.path)


@dataclass
class Matching:
    """Finds pairs. Both trees are treated alike, so that exchanging them changes nothing.

    Attributes:
        similar: compares contents of leaves; None if none may be read.
        pairs: (path in the first tree, path in the second), of equal content or not.
    """

    similar: Similar | None = None
    pairs: list[tuple[str, str]] = field(default_factory=list)
    _ids: dict[Any, int] = field(default_factory=dict)
    _content: dict[int, int] = field(default_factory=dict)
    _usual: set[int] = field(default_factory=set)
    _left: tuple[dict[str, _Subtree], dict[str, _Subtree]] = field(default_factory=lambda: ({}, {}))

    def match(self, one: Root, other: Root) -> list[tuple[str, str]]:
        """The pairs of two trees of `Node`s whose leaves have `spec` and `digest`."""
        for root in (one, other):
            self._identify(root)
            counts = Counter(self._content[id(leaf)] for _, leaf in iter_leaves(root))
            self._usual.update(content for content, count in counts.items() if count > 1)
        self._pair(_Subtree(None, one), _Subtree(None, other))
        self._equal_subtrees()
        self._equal_leaves()
        if self.similar is not None:
            self._alike_leaves()
        return self.pairs

    # -- identity ------------------------------------------------------------

    def _identify(self, node: Root) -> int:
        """One number for each content: the same for subtrees that are equal, in either tree."""
        if isinstance(node, Node):
            children = tuple(self._identify(child) for child in node.children)
            key: Any = (node.kind, node.name, node.keys, children)
        else:
            key = (str(node.spec), node.digest)
        found = self._content[id(node)] = self._ids.setdefault(key, len(self._ids))
        return found

    def _same(self, one: _Subtree, other: _Subtree) -> bool:
        return self._content[id(one.node)] == self._content[id(other.node)]

    # -- names -----------------------------------------------------------------

    def _pair(self, one: _Subtree, other: _Subtree) -> None:
        """Takes two subtrees for the same, and goes on below them."""
        if self._same(one, other):
            for (path, _), (there, _) in zip(one.leaves(), other.leaves(), strict=True):
                self.pairs.append((path, there))
        elif isinstance(one.node, Node) != isinstance(other.node, Node):
            self._leave(0, [one])
            self._leave(1, [other])
        elif not isinstance(one.node, Node):
            self.pairs.append((one.path or "", other.path or ""))
        else:
            self._pair_children(one.children(), other.children())

    def _pair_children(self, one: dict[str, _Subtree], other: dict[str, _Subtree]) -> None:
        first, second = dict(one), dict(other)
        found = []
        in_place: set[tuple[str, frozenset[str]]] = set()
        for sequence, names in _families(first, second):
            members = [first[name] for name in first if name in names]
            others = [second[name] for name in second if name in names]
            if self._shifted(members, others, sequence, in_place):
                found += self._aligned(members, others)
        for a, b in found:
            del first[_last(a)], second[_last(b)]
        for name in [name for name in first if name in second]:
            found.append((first.pop(name), second.pop(name)))
        if first and second:
            renamed = self._aligned(list(first.values()), list(second.values()), named=False)
            for a, b in renamed:
                del first[_last(a)], second[_last(b)]
            found += renamed
        self._leave(0, first.values())
        self._leave(1, second.values())
        for a, b in found:
            self._pair(a, b)

    def _leave(self, side: int, parts: Iterable[_Subtree]) -> None:
        self._left[side].update((part.path or "", part) for part in parts)

    def _take(self, one: _Subtree, other: _Subtree) -> None:
        del self._left[0][one.path or ""], self._left[1][other.path or ""]

    def _shifted(
        self,
        members: Sequence[_Subtree],
        others: Sequence[_Subtree],
        sequence: tuple[str, frozenset[str]],
        in_place: set[tuple[str, frozenset[str]]],
    ) -> bool:
        """Whether there is a sign that a family's numbers do not mean the same in both trees.

        Args:
            members: of the first tree.
            others: of the second.
            sequence: what comes before the numbers, and the numbers.
            in_place: the sequences of which data have shown that they mean the same:
                of `h_0.bias`, `h_1.bias`, … and `h_0.kernel`, `h_1.kernel`, … only the
                smaller ones are read. Is added to.
        """
        here, there = ({_last(part): part for part in side} for side in (members, others))
        if here.keys() != there.keys():
            return True
        pairs = [(here[name], there[name]) for name in here]
        changed = [(a, b) for a, b in pairs if not self._same(a, b)]
        if len(changed) < 2:
            return False
        if any(_shapes(a) != _shapes(b) for a, b in changed):
            return True
        contents = [(self._telling(a), self._telling(b)) for a, b in changed]
        first, second = (set().union(*side) for side in zip(*contents, strict=True))
        if any((a - b) & second or (b - a) & first for a, b in contents):
            return True
        if self.similar is None or sequence in in_place:
            return False
        alike = [self._likeness(a, b, small=True) for a, b in changed]
        if all(found is not None and found >= ALIKE for found in alike):
            in_place.add(sequence)
        return sum(found is not None and found < ALIKE for found in alike) >= 2

    def _telling(self, part: _Subtree) -> set[int]:
        """The contents of leaves that are not equal to others by chance, as short or zero ones."""
        found = {
            self._content[id(leaf)] for _, leaf in part.leaves() if _elements(leaf) >= EVIDENCE
        }
        return found - self._usual

    # -- alignment ---------------------------------------------------------------

    def _aligned(
        self, one: Sequence[_Subtree], other: Sequence[_Subtree], named: bool = True
    ) -> list[tuple[_Subtree, _Subtree]]:
        """Siblings that belong together by content, and by name where names count."""
        if not one or not other or len(one) * len(other) > MOST_PAIRS:
            return []
        score: dict[tuple[int, int], float] = {}
        shapes = [[_shapes(part) for part in side] for side in (one, other)]
        for i, a in enumerate(one):
            for j, b in enumerate(other):
                kind = _overlap(shapes[0][i], shapes[1][j])
                if self._same(a, b):
                    score[i, j] = 2.0
                elif kind > 0:
                    found = self._likeness(a, b)
                    if found is None:
                        # Nothing is known of the contents: numbers decide.
                        found = ALIKE if named and _last(a) == _last(b) else 0.0
                    score[i, j] = kind * found
        namesakes = {
            (i, j)
            for i, a in enumerate(one)
            for j, b in enumerate(other)
            if named and _last(a) == _last(b)
        }
        return [(one[i], other[j]) for i, j in align(len(one), len(other), score, namesakes)]

    def _likeness(self, a: _Subtree, b: _Subtree, small: bool = False) -> float | None:
        """How alike two subtrees of like shape are: by digests, else by a sample of a leaf."""
        first, second = _relative(a), _relative(b)
        common = [
            name
            for name, leaf in first.items()
            if name in second and leaf.spec.shape == second[name].spec.shape
        ]
        sizes = {name: _elements(first[name]) for name in common}
        equal = sum(
            sizes[name]
            for name in common
            if (content := self._content[id(first[name])]) == self._content[id(second[name])]
            and content not in self._usual
            and sizes[name] >= EVIDENCE
        )
        if equal:
            return max(ALIKE, equal / max(1, sum(sizes.values())))
        telling = sorted((n for n in common if sizes[n] >= EVIDENCE), key=lambda n: sizes[n])
        if self.similar is None:
            return None
        for name in (telling if small else telling[::-1])[:TRIES]:
            places = (_under(a.path, name), _under(b.path, name))
            found = self.similar(*places)
            if found is not None:
                return found
        return None

    # -- digests -------------------------------------------------------------------

    def _equal_subtrees(self) -> None:
        """Pairs subtrees of equal content among what is left, large ones first."""
        opened = True
        while opened:
            places: dict[int, list[_Subtree]] = defaultdict(list)
            for part in self._left[1].values():
                if isinstance(part.node, Node) and part.node.children:
                    places[self._content[id(part.node)]].append(part)
            for part in list(self._left[0].values()):
                fitting = places.get(self._content[id(part.node)])
                if fitting:
                    other = fitting.pop(0)
                    self._take(part, other)
                    self._pair(part, other)
            opened = [self._opened(side) for side in self._left] != [False, False]

    def _opened(self, side: dict[str, _Subtree]) -> bool:
        """Replaces the containers among some subtrees by what is in them; False if none is."""
        nodes = [path for path, part in side.items() if isinstance(part.node, Node)]
        for path in nodes:
            side.update((part.path or "", part) for part in side.pop(path).children().values())
        return bool(nodes)

    def _equal_leaves(self) -> None:
        places: dict[int, list[_Subtree]] = defaultdict(list)
        for part in self._left[1].values():
            places[self._content[id(part.node)]].append(part)
        for part in list(self._left[0].values()):
            fitting = places[self._content[id(part.node)]]
            if not fitting:
                continue
            # Of several equal ones, such as zeros, the one whose key is the same.
            other = next((p for p in fitting if _last(p) == _last(part)), fitting[0])
            fitting.remove(other)
            self._take(part, other)
            self.pairs.append((part.path or "", other.path or ""))

    # -- longest common subsequence --------------------------------------------------

    def _alike_leaves(self) -> None:
        assert self.similar is not None
        groups: dict[Any, tuple[list[_Subtree], list[_Subtree]]] = defaultdict(lambda: ([], []))
        for at, side in enumerate(self._left):
            for part in side.values():
                if _elements(part.node) >= EVIDENCE:
                    groups[part.node.spec.shape][at].append(part)
        for one, other in groups.values():
            if len(one) * len(other) > MOST_PAIRS:
                continue
            score = {
                (i, j): self.similar(a.path or "", b.path or "") or 0.0
                for i, a in enumerate(one)
                for j, b in enumerate(other)
            }
            for i, j in align(len(one), len(other), score, set()):
                self.pairs.append((one[i].path or "", other[j].path or ""))


EVIDENCE = 64
"""Elements that a leaf needs for its content to say anything: of 64 pairs of unrelated numbers
one in 30,000 has a correlation of 0.5."""

TRIES = 3
"""Leaves of a subtree that are sampled, until one tells something (constant ones do not)."""

MOST_PAIRS = 40_000
"""Beyond this many pairs nothing is aligned: names and digests have to do."""


def _families(
    one: dict[str, _Subtree], other: dict[str, _Subtree]
) -> list[tuple[tuple[str, frozenset[str]], set[str]]]:
    """The names of either side that differ in their last number alone, in sets.

    Before each comes what is in front of the numbers, and the numbers; those of the
    fewest elements come first.
    """
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in [*one, *other]:
        parts = _NUMBERED.fullmatch(name)
        if parts is not None:
            found[parts[1], parts[3]][name] = parts[2]
    size = {name: sum(_elements(leaf) for _, leaf in one[name].leaves()) for name in one}
    families = [
        ((stem, frozenset(numbers.values())), set(numbers))
        for (stem, _), numbers in found.items()
        if len(numbers) > 1
    ]
    return sorted(families, key=lambda family: sum(size.get(name, 0) for name in family[1]))


def _last(part: _Subtree) -> str:
    return (part.path or "").rpartition("/")[2]


def _under(path: str | None, name: str) -> str:
    return "/".join(filter(None, (path, name)))


def _relative(part: _Subtree) -> dict[str, Identified]:
    """The leaves below a subtree by their path in it."""
    return dict(iter_leaves(part.node))


def _elements(leaf: Identified) -> int:
    size = 1
    for length in leaf.spec.shape:
        size *= length
    return 0 if leaf.spec.is_value else size


def _shapes(part: _Subtree) -> dict[str, tuple[int, ...]]:
    return {name: leaf.spec.shape for name, leaf in iter_leaves(part.node)}


def _overlap(one: Mapping[str, object], other: Mapping[str, object]) -> float:
    """How much of two subtrees is of the same names and shapes; 0 below a half."""
    common = sum(other.get(name) == shape for name, shape in one.items())
    share = 2 * common / max(1, len(one) + len(other))
    return share if share >= 0.5 else 0.0
