"""The graph of `log --graph`: pictures, and what must hold of any picture."""

import random
import textwrap

import pytest

from vcjax.report import draw, topological

pytestmark = pytest.mark.smoke

PICTURES = {
    "linear": (
        {"c": "b", "b": "a", "a": ""},
        """
        * c
        * b
        * a
        """,
    ),
    "fork": (
        {"t": "a", "m": "a", "a": ""},
        """
        * t
        | * m
        |/
        * a
        """,
    ),
    "merge": (
        {"m": "ab", "a": "z", "b": "z", "z": ""},
        """
        *   m
        |\\
        | * b
        * | a
        |/
        * z
        """,
    ),
    "merge beside another line": (
        {"t": "z", "m": "ab", "b": "z", "a": "z", "z": ""},
        """
        * t
        | *   m
        | |\\
        | | * b
        | |/
        |/|
        | * a
        |/
        * z
        """,
    ),
    "octopus": (
        {"m": "abc", "a": "z", "b": "z", "c": "z", "z": ""},
        """
        *     m
        |\\
        | |\\
        | | * c
        | * | b
        | |/
        * | a
        |/
        * z
        """,
    ),
    "criss-cross": (
        {"x": "m", "y": "n", "m": "ab", "n": "ba", "a": "z", "b": "z", "z": ""},
        """
        * x
        *   m
        |\\
        | | * y
        | | * n
        | |/|
        |/| |
        | |/
        * | a
        | * b
        |/
        * z
        """,
    ),
    "two roots": (
        {"m": "ab", "b": "", "a": ""},
        """
        *   m
        |\\
        | * b
        * a
        """,
    ),
    "unrelated histories": (
        {"c": "b", "b": "", "t": "s", "s": ""},
        """
        * c
        * b

        * t
        * s
        """,
    ),
    "fast line over a long branch": (
        {"m": "zd", "d": "c", "c": "b", "b": "z", "z": ""},
        """
        *   m
        |\\
        | * d
        | * c
        | * b
        |/
        * z
        """,
    ),
    "a parent given twice": (
        {"m": "aa", "a": ""},
        """
        * m
        * a
        """,
    ),
    "history that was cut off": (
        {"m": "ab", "b": "y"},
        """
        *   m
        |\\
        | * b
        """,
    ),
}


def picture(history: dict[str, str], order: list[str] | None = None) -> str:
    order = order or topological(history)
    lines = []
    for commit, row in zip(order, draw((c, history[c]) for c in order), strict=True):
        first, *rest = row.prefixes(1)
        lines += [first + commit, *(line.rstrip() for line in rest)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", PICTURES)
def test_picture(name):
    history, expected = PICTURES[name]
    assert picture(history) == textwrap.dedent(expected)[1:]


def test_a_root_on_the_left_lets_the_others_move_over():
    history = {"m": "ab", "a": "", "b": "z", "z": ""}
    drawn = picture(history, ["m", "a", "b", "z"])
    assert drawn == "*   m\n|\\\n* | a\n /\n* b\n* z\n"


def test_order_keeps_branches_together():
    history = {"m": ("a2", "b2"), "b2": ("b1",), "a2": ("a1",), "b1": ("z",), "a1": ("z",), "z": ()}
    assert topological(history) == ["m", "b2", "b1", "a2", "a1", "z"]


def test_further_lines_stand_beside_the_lanes():
    rows = list(draw([("m", "ab"), ("b", "z")]))
    assert rows[0].prefixes(4) == ["*   ", "|\\  ", "| | ", "| | "]
    assert rows[1].prefixes(3) == ["| * ", "| | ", "| | "]


def random_history(generator: random.Random) -> dict[str, list[str]]:
    names = [str(i) for i in range(generator.randint(1, 25))]
    history = {}
    for i, name in enumerate(names):
        older = names[i + 1 :]
        count = min(len(older), generator.choice([0, 1, 1, 1, 1, 2, 2, 3]))
        near = older[: 1 + generator.randint(0, 8)]
        history[name] = generator.sample(near, min(count, len(near)))
    return history


def follow(lines: list[str], row: int, column: int) -> set[int]:
    """The lines of `*` that the edges leaving the character at (row, column) downward lead to."""
    stack, seen, found = [(row, column)], set(), set()

    def at(r: int, c: int) -> str:
        return lines[r][c] if 0 <= c < len(lines[r]) else " "

    while stack:
        r, c = stack.pop()
        if (r, c) in seen or r + 1 >= len(lines):
            continue
        seen.add((r, c))
        mark = at(r, c)
        # Where the edge leaves the line: straight down, or past the slanted stroke.
        below = {"/": [(c - 1, "|*"), (c - 2, "/")], "\\": [(c + 1, "|*"), (c + 2, "\\"), (c, "/")]}
        steps = below.get(mark, [(c, "|*"), (c - 1, "/"), (c + 1, "\\")])
        for place, marks in steps:
            if at(r + 1, place) in marks:
                if at(r + 1, place) == "*":
                    found.add(r + 1)
                else:
                    stack.append((r + 1, place))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_any_history_is_drawn_completely(seed):
    history = random_history(random.Random(seed))
    order = topological(history)
    position = {commit: i for i, commit in enumerate(order)}
    assert sorted(order) == sorted(history)
    assert all(position[c] < position[p] for c in history for p in history[c])
    lines, stars = [], {}
    for commit, row in zip(order, draw((c, history[c]) for c in order), strict=True):
        assert row.node.count("*") == 1
        stars[commit] = len(lines)
        assert all(len(line) <= row.width for line in (row.node, *row.edges, row.after))
        lines += [row.node, *row.edges]
    for commit, parents in history.items():
        reached = follow(lines, stars[commit], lines[stars[commit]].index("*"))
        assert {stars[parent] for parent in parents} <= reached
