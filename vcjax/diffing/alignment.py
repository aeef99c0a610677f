"""The heaviest common subsequence of two sequences, and what crosses it."""

from collections.abc import Mapping

ALIKE = 0.5
"""Contents less alike than this do not belong together (as little as `git diff -M` asks for)."""

_NAME = 0.01
"""What the same name adds: it decides between what is equally alike."""


def align(
    rows: int, columns: int, score: Mapping[tuple[int, int], float], namesakes: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Pairs of two sequences, none twice, that belong together.

    First the common subsequence whose scores have the largest sum (Needleman & Wunsch 1970,
    without a penalty for gaps), then what was moved across it, the most alike first, and
    last the namesakes that are left over.

    Args:
        rows: length of the first sequence.
        columns: of the second.
        score: {(place in the first, in the second): how alike}; less than `ALIKE` is
            not enough.
        namesakes: pairs of places that have the same name.

    Example:
        >>> align(2, 3, {(0, 0): 1.0, (1, 2): 0.9}, set())
        [(0, 0), (1, 2)]
    """
    weight = {
        pair: value + (_NAME if pair in namesakes else 0.0)
        for pair, value in score.items()
        if value >= ALIKE
    }
    found = _heaviest(rows, columns, weight)
    left, right = {i for i, _ in found}, {j for _, j in found}
    for i, j in sorted(weight, key=lambda pair: (-weight[pair], pair)):
        if i not in left and j not in right:
            found.append((i, j))
            left.add(i)
            right.add(j)
    found += [(i, j) for i, j in sorted(namesakes) if i not in left and j not in right]
    return sorted(found)


def _heaviest(
    rows: int, columns: int, weight: Mapping[tuple[int, int], float]
) -> list[tuple[int, int]]:
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            taken = best[i + 1][j + 1] + weight[i, j] if (i, j) in weight else 0.0
            best[i][j] = max(taken, best[i + 1][j], best[i][j + 1])
    found, i, j = [], 0, 0
    while i < rows and j < columns:
        if (i, j) in weight and best[i][j] == best[i + 1][j + 1] + weight[i, j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return found
