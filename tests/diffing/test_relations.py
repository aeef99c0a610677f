"""What was kept of a leaf that was made over, said in words."""

import ml_dtypes
import numpy as np
import pytest

import vcjax

RNG = np.random.default_rng(0)
W = RNG.standard_normal((40, 24)).astype(np.float32)
CUBE = RNG.standard_normal((3, 4, 5)).astype(np.float32)
HALF = W.astype(ml_dtypes.bfloat16)
SQUARE = RNG.standard_normal((24, 24)).astype(np.float32)
ORDER = RNG.permutation(40)

CASES = {
    "rounded": (W, HALF, "rounded", "bfloat16 of the same values"),
    "rounded before": (W, W.astype(np.float16), "rounded", "float16 of the same values"),
    "cast": (HALF, HALF.astype(np.float32), "cast", "cast to float32"),
    "integers cast": (np.arange(9), np.arange(9.0), "cast", "cast to float64"),
    "unrounded": (HALF, W, "rounded", "bfloat16"),
    "transposed": (W, W.T, "transposed", "transposed"),
    "transposed square": (SQUARE, SQUARE.T, "transposed", "transposed"),
    "axes": (CUBE, CUBE.transpose(2, 0, 1), "transposed", "transposed to axes 2, 0, 1"),
    "transposed and rounded": (W, HALF.T, "transposed", "transposed, bfloat16 of the same values"),
    "reshaped": (W, W.reshape(20, 48), "reshaped", "reshaped, the same numbers in the same order"),
    "grown": (W, np.vstack([W, SQUARE[:3]]), "grown", "grew 3 rows, the rest equal"),
    "one row": (W, np.vstack([W, SQUARE[:1]]), "grown", "grew 1 row, the rest equal"),
    "columns": (W, np.hstack([W, W[:, :2]]), "grown", "grew 2 columns, the rest equal"),
    "both": (W, np.pad(W, ((0, 1), (0, 2))), "grown", "grew 1 row and 2 columns, the rest equal"),
    "vector": (W[0], W[0, :20], "shrunk", "lost 4 elements, the rest equal"),
    "shrunk": (W, W[:-3], "shrunk", "lost 3 rows, the rest equal"),
    "grown and rounded": (
        W,
        np.vstack([W, SQUARE[:3]]).astype(ml_dtypes.bfloat16),
        "grown",
        "grew 3 rows, the rest equal, bfloat16 of the same values",
    ),
    "permuted": (W, W[ORDER], "permuted", "permuted rows"),
    "columns permuted": (W, W[:, ::-1], "permuted", "permuted columns"),
    "rows of halves": (HALF, HALF[ORDER], "permuted", "permuted rows"),
    "other rows": (W, W[ORDER] + 1, None, None),
    "other numbers": (W, np.add(HALF, HALF), None, None),
    "grown and changed": (W, np.vstack([W + 1, SQUARE[:3]]), None, None),
    "another shape": (W, np.ones((3, 3), np.float32), None, None),
    "negated": (W, -W, None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_kept(name, repo):
    old, new, relation, note = CASES[name]
    for diff in (
        vcjax.diff({"w": old}, {"w": new}),
        repo.diff(repo.commit({"w": old}), repo.commit({"w": new})),
    ):
        [change] = diff.changes
        assert (change.status, change.relation) == ("changed", relation)
        assert note is None or note in change.note
        assert note is None or str(change.note) in str(diff)
        assert change.to_dict()["relation"] == relation


def test_nothing_is_said_without_reading():
    diff = vcjax.diff({"w": W}, {"w": W.T}, stats=False)
    assert diff.changes[0].relation is None


def test_growth_is_told_of_leaves_of_many_chunks(repo):
    old = RNG.standard_normal((3001, 1000)).astype(np.float32)
    new = np.vstack([old, old[:17]]).astype(ml_dtypes.bfloat16)
    diff = repo.diff(repo.commit({"w": old}), repo.commit({"w": new}))
    assert diff.changes[0].note == "grew 17 rows, the rest equal, bfloat16 of the same values"
    new = new.copy()
    new[2999, 5] = 7
    assert vcjax.diff({"w": old}, {"w": new}).changes[0].relation is None


def test_nan_is_the_same_value():
    old = W.copy()
    old[3, 3] = np.nan
    assert vcjax.diff({"w": old}, {"w": old.astype(np.float16)}).changes[0].relation == "rounded"
