"""Drawing history as `git log --graph` does: which characters stand before each commit.

A *lane* is a column of the picture; it waits for one commit. Drawing a commit
first opens lanes for the parents that no lane waits for yet (edges to the right
of it move right), then closes lanes that wait for the same commit (edges move
left). Every line of the picture moves an edge by at most one lane.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """What is drawn for one commit.

    Attributes:
        node: the line with the commit's `*`.
        edges: the lines after it in which edges fork, cross and join.
        after: the lanes after those, for further lines of text.
        width: characters that all of these are padded to, so that text lines up.
    """

    node: str
    edges: tuple[str, ...]
    after: str
    width: int

    def prefixes(self, count: int) -> list[str]:
        """What stands before each of `count` lines of text, and the edges that are left."""
        lines = [self.node, *self.edges]
        lines += [self.after] * (count - len(lines))
        return [text.ljust(self.width) for text in lines]


def topological(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Commits in an order that keeps each line of development together.

    Children come before parents; a branch that was merged comes before the rest
    of the line that it was merged into (Kahn's algorithm with a stack, the order
    of `git log --graph`).

    Args:
        parents: {commit: its parents}, children before parents. Parents that are
            no key are ignored.
    """
    waiting = Counter(parent for commit in parents for parent in dict.fromkeys(parents[commit]))
    stack = [commit for commit in reversed(list(parents)) if not waiting[commit]]
    order = []
    while stack:
        commit = stack.pop()
        order.append(commit)
        for parent in dict.fromkeys(parents[commit]):
            waiting[parent] -= 1
            if not waiting[parent] and parent in parents:
                stack.append(parent)
    return order


def draw(history: Iterable[tuple[str, Sequence[str]]]) -> Iterator[Row]:
    """The picture of a history, one `Row` per commit, as the commits arrive.

    Args:
        history: (commit, its parents), children before parents.
    """
    lanes: list[str] = []
    root: tuple[int, Row] | None = None  # lane and row of the last commit, if it was a root
    for commit, parents in history:
        fresh = commit not in lanes
        if fresh:
            lanes.append(commit)
        lane = lanes.index(commit)
        if root is not None:
            # A tip straight below a root would look like its parent.
            yield _with_gap(root[1]) if fresh and root[0] == lane else root[1]
        node = _verticals(range(len(lanes)), {lane: "*"})
        opened, edges = _open(lanes, lane, list(dict.fromkeys(parents)))
        lanes, closing = _close(opened)
        width = 2 * max(1 + lane, (len(node) + 1) // 2, len(opened))
        row = Row(node, (*edges, *closing), _verticals(range(len(lanes)), {}), width)
        root = None if parents else (lane, row)
        if parents:
            yield row
    if root is not None:
        yield root[1]


def _with_gap(row: Row) -> Row:
    return replace(row, edges=(*row.edges, row.after))


def _open(
    lanes: Sequence[str], lane: int, parents: Sequence[str]
) -> tuple[list[str | None], list[str]]:
    """The lanes once the commit at `lane` has given way to its parents, and the lines between.

    A parent beside the first that some lane waits for gets an edge to that lane.
    The lane of a root becomes None.
    """
    fresh = [parent for parent in parents[1:] if parent not in lanes]
    known = [parent for parent in parents[1:] if parent in lanes]
    opened: list[str | None] = [*lanes[:lane], parents[0] if parents else None, *fresh]
    opened += lanes[lane + 1 :]
    moves = [(i, i) for i in range(lane + bool(parents))]
    moves += [(lane, lane + 1 + i) for i in range(len(fresh))]
    moves += [(i, i + len(fresh)) for i in range(lane + 1, len(lanes))]
    moves += [(lane, opened.index(parent)) for parent in known]
    if all(start == stop for start, stop in moves):
        return opened, []
    return opened, _move(moves)


def _close(opened: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """The lanes without gaps, one per awaited commit, and the lines that lead there."""
    lanes = [commit for commit in dict.fromkeys(opened) if commit is not None]
    moves = [(i, lanes.index(commit)) for i, commit in enumerate(opened) if commit is not None]
    return lanes, _move(moves)


def _move(moves: Iterable[tuple[int, int]]) -> list[str]:
    """The lines in which edges move from one lane to another, one lane per line."""
    edges = list(dict.fromkeys(moves))
    lines = []
    while any(place != target for place, target in edges):
        standing = [place for place, target in edges if place == target]
        moving = {}
        for place, target in edges:
            if target != place:
                moving[2 * place + (1 if target > place else -1)] = "\\" if target > place else "/"
        lines.append(_characters({2 * place: "|" for place in standing} | moving))
        edges = [(place + (target > place) - (target < place), target) for place, target in edges]
    return lines


def _verticals(lanes: Iterable[int], marks: Mapping[int, str]) -> str:
    return _characters({2 * lane: marks.get(lane, "|") for lane in lanes})


def _characters(marks: Mapping[int, str]) -> str:
    return "".join(marks.get(i, " ") for i in range(1 + max(marks, default=-1)))
