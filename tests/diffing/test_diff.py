"""What `vcjax.diff` and `Repository.diff` say: statuses, structure and figures."""

import json
import math
from collections import OrderedDict

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vcjax
from vcjax import diffing, report
from vcjax.diffing.kernel import BLOCK
from vcjax.diffing.statistics import leaf_statistics
from vcjax.errors import TreeError
from vcjax.repo import diff as comparing

from .figures import figures, three_way

pytestmark = pytest.mark.smoke

ONE, TWO = np.array([1, 2], np.float32), np.array([1, 3], np.float32)

STATUSES = {
    "unchanged": ({"w": ONE}, {"w": ONE.copy()}, {"w": "unchanged"}),
    "changed": ({"w": ONE}, {"w": TWO}, {"w": "changed"}),
    "added": ({}, {"w": ONE}, {"w": "added"}),
    "removed": ({"w": ONE}, {}, {"w": "removed"}),
    "moved": ({"a": ONE}, {"b": ONE}, {"b": "moved"}),
    "copied": ({"a": ONE}, {"a": ONE, "b": ONE}, {"a": "unchanged", "b": "added"}),
    "moved once": ({"a": ONE}, {"b": ONE, "c": ONE}, {"b": "moved", "c": "added"}),
    "swapped": ({"a": ONE, "b": TWO}, {"a": TWO, "b": ONE}, {"a": "changed", "b": "changed"}),
    "other dtype": ({"w": ONE}, {"w": ONE.astype(np.float64)}, {"w": "changed"}),
    "other shape": ({"w": ONE}, {"w": ONE[:1]}, {"w": "changed"}),
    "value": ({"n": 1}, {"n": 2}, {"n": "changed"}),
    "text": ({"n": "a"}, {"n": "a"}, {"n": "unchanged"}),
    "other type": ({"n": 1}, {"n": 1.0}, {"n": "changed"}),
    "root": (ONE, TWO, {"": "changed"}),
    "empty": ({}, {}, {}),
}


def statuses(diff):
    return {change.path: change.status for change in diff.changes}


@pytest.mark.parametrize("name", STATUSES)
def test_statuses(name, repo):
    old, new, expected = STATUSES[name]
    diff = vcjax.diff(old, new)
    assert statuses(diff) == expected
    assert bool(diff) == any(status != "unchanged" for status in expected.values())
    assert sum(diff.counts.values()) == len(expected)
    first, second = repo.commit(old), repo.commit(new)
    assert repo.diff(first, second) == diff


STRUCTURES = {
    "another kind": ({"a": [ONE]}, {"a": (ONE,)}, ["a"]),
    "root": ({"a": ONE}, OrderedDict(a=ONE), [""]),
    "empty appears": ({"w": ONE}, {"w": ONE, "a": {}}, ["a"]),
    "empty goes": ({"w": ONE, "a": []}, {"w": ONE}, ["a"]),
    "another empty": ({"a": []}, {"a": {}}, ["a"]),
    "none to leaf": ({"a": None}, {"a": 1}, []),
    "leaf to none": ({"a": ONE}, {"a": None}, []),
    "empty to leaf": ({"a": {}}, {"a": 1}, []),
    "none appears": ({}, {"a": None}, ["a"]),
    "same": ({"a": [None]}, {"a": [None]}, []),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name):
    old, new, expected = STRUCTURES[name]
    for diff in (vcjax.diff(old, new), vcjax.diff(new, old)):
        assert list(diff.structure) == expected
        assert str(diff).count("container changed") == len(expected)
        assert diff.is_empty == (name == "same")


def test_none_to_leaf_is_said_once():
    assert str(vcjax.diff({"a": None}, {"a": 1})) == "1 added\n+ a  int 1"


DTYPES = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "bool")},
    **{name: np.dtype(name) for name in ("int8", "int32", "int64", "uint8", "uint64")},
    **{name: np.dtype(name) for name in ("complex64", "complex128")},
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "int4")
    },
}


def sample(dtype, size, seed, scale):
    """Numbers of a dtype, of magnitudes around `scale` where it has them."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "c":
        return (rng.normal(size=size) + 1j * rng.normal(size=size)).astype(dtype)
    if dtype.kind in "iu":
        span = np.iinfo(dtype)
        return rng.integers(span.min, span.max, size, dtype, endpoint=True)
    if dtype.kind == "b":
        return rng.random(size) < 0.5
    if dtype.name == "int4":
        return rng.integers(-8, 8, size).astype(dtype)
    wide = dtype.name in ("float32", "float64", "bfloat16")
    return (rng.normal(size=size) * (scale if wide else 1)).astype(dtype)


def reference(old, new):
    """The figures, of NumPy's widest numbers, straight from their definitions."""
    wide = np.clongdouble if old.dtype.kind == "c" else np.longdouble
    if old.dtype.itemsize < 4:
        old, new = old.astype(np.float32), new.astype(np.float32)
    a, b = old.astype(wide), new.astype(wide)
    finite = np.isfinite(a) & np.isfinite(b)
    changed = (a != b) & ~(np.isnan(a) & np.isnan(b))
    nonfinite = [int(np.sum(~np.isfinite(x))) for x in (a, b)]
    nans = [int(np.sum(np.isnan(x))) for x in (a, b)]
    shape = old.shape or (1,)
    masks = changed.reshape(-1, shape[-1]) if old.size else np.zeros((0, shape[-1]), bool)
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    l2, norm_old, norm_new = (np.sqrt(np.sum(np.abs(x) ** 2)) for x in (b - a, a, b))
    dots = np.sum(np.real(a.conj() * b))
    return {
        "l2": l2,
        "relative_l2": l2 / norm_old if norm_old else math.inf if l2 else 0,
        "max_abs": np.max(np.abs(b - a), initial=0),
        "cosine": dots / norm_old / norm_new if norm_old and norm_new else norm_old == norm_new,
        "norm_old": norm_old,
        "norm_new": norm_new,
        "elements": old.size,
        "changed": int(np.sum(changed)),
        "fraction_changed": np.sum(changed) / max(1, old.size),
        "sign_flips": 0 if wide is np.clongdouble else int(np.sum(a * b < 0)),
        "alignment": np.sum(np.real(a.conj() * (b - a))) / norm_old / l2 if norm_old and l2 else 0,
        "nonfinite_old": nonfinite[0],
        "nonfinite_new": nonfinite[1],
        "nan_old": nans[0],
        "nan_new": nans[1],
        "inf_old": nonfinite[0] - nans[0],
        "inf_new": nonfinite[1] - nans[1],
        "rows": masks.shape[0],
        "columns": masks.shape[1],
        "rows_touched": int(masks.any(1).sum()),
        "columns_touched": int(masks.any(0).sum()),
        "learning_rate_scale": l2 / np.sqrt(max(1, np.sum(changed))),
        "coverage": 1,
    }


def agree(figures, expected):
    assert figures.keys() > expected.keys()
    for name, value in expected.items():
        if name in ("cosine", "alignment"):
            assert figures[name] == pytest.approx(float(value), abs=1e-6), name
        else:
            assert figures[name] == pytest.approx(float(value), rel=1e-6, abs=0), name


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    size=st.sampled_from([0, 1, 7, 5000, 17_000, 70_000]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-40, 1e-30, 1e-3, 1.0, 1e15, 1e37]),
    nonfinite=st.booleans(),
)
def test_figures_are_those_of_numpy(dtype, size, seed, scale, nonfinite):
    kind = DTYPES[dtype]
    old, new = (sample(kind, size, seed + i, scale) for i in (0, 1))
    new[: size // 3] = old[: size // 3]
    if nonfinite and kind.kind in "fc" and size >= 7:
        old[0], old[1], new[1], new[2] = np.nan, np.inf, -np.inf, np.nan
        new[0], old[3], new[3] = np.nan, np.inf, np.inf
    agree(leaf_statistics(dtype, old, new), reference(old, new))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_figures_of_a_leaf_of_several_blocks_wherever_it_lies(dtype):
    rng = np.random.default_rng(0)
    old = rng.standard_normal(2 * BLOCK + 5000, np.float32).astype(DTYPES[dtype])
    new = (old + np.float32(1e-2) * rng.standard_normal(old.size, np.float32)).astype(old.dtype)
    figures = leaf_statistics(dtype, old, new)
    agree(figures, reference(old, new))
    for offsets in ((1, 2), (0, 31), (17, 5)):
        moved = [np.empty(old.size + at, old.dtype)[at:] for at in offsets]
        moved[0][:], moved[1][:] = old, new
        assert leaf_statistics(dtype, *moved) == figures
    for part in (slice(BLOCK + 200), slice(BLOCK)):  # one window and a rest; no window at all
        agree(leaf_statistics(dtype, old[part], new[part]), reference(old[part], new[part]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [1e-30, 1e-39, 3e38, 1.0])
@pytest.mark.parametrize("size", [5, 20_000])
def test_figures_at_the_ends_of_the_range(dtype, value, size):
    old = np.full(size, value).astype(DTYPES[dtype])
    agree(leaf_statistics(dtype, old, -old), reference(old, -old))
    agree(leaf_statistics(dtype, old, 0 * old), reference(old, 0 * old))


def test_a_difference_beyond_float32_is_measured_beside_others():
    old = np.linspace(-1, 1, 90_000, dtype=np.float32)
    new = old + np.float32(0.25)
    old[85_000], new[85_000] = -3e38, 3e38
    figures = leaf_statistics("float32", old, new)
    assert figures["max_abs"] == pytest.approx(6e38, rel=1e-6)
    agree(figures, reference(old, new))


def test_the_least_change_of_64_bit_integers_counts():
    for dtype in ("int64", "uint64"):
        old = np.array([2**60, 5], dtype)
        figures = leaf_statistics(dtype, old, old + np.array([1, 0], dtype))
        assert (figures["fraction_changed"], figures["l2"], figures["max_abs"]) == (0.5, 1, 1)
    ends = np.iinfo(np.int64)
    figures = leaf_statistics("int64", np.array([ends.min]), np.array([ends.max]))
    assert (figures["max_abs"], figures["sign_flips"]) == (2.0**64, 1)


def test_a_complex_number_is_one_element():
    figures = leaf_statistics(
        "complex64", np.array([0, 1], np.complex64), np.array([3 + 4j, 1], np.complex64)
    )
    assert (figures["fraction_changed"], figures["max_abs"]) == (0.5, 5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["float32", "bfloat16", "float64", "int32"]), st.integers(0, 99))
def test_figures_are_symmetric(dtype, seed):
    size = 500 if seed % 2 else 20_000
    old, new = (sample(DTYPES[dtype], size, 2 * seed + i, 1.0) for i in (0, 1))
    there, back = leaf_statistics(dtype, old, new), leaf_statistics(dtype, new, old)
    for name in ("l2", "max_abs", "cosine", "fraction_changed", "sign_flips"):
        assert there[name] == pytest.approx(back[name], rel=1e-12)
    assert (there["norm_old"], there["norm_new"]) == (back["norm_new"], back["norm_old"])
    same = leaf_statistics(dtype, old, old)
    assert (same["l2"], same["relative_l2"], same["fraction_changed"]) == (0, 0, 0)
    assert same["cosine"] == pytest.approx(1, abs=1e-6)


LEAVES = st.sampled_from([ONE, TWO, 1, "text", np.zeros((0, 3)), None])
TREES = st.dictionaries(st.sampled_from("abcd"), LEAVES | st.lists(LEAVES, max_size=2))


@settings(max_examples=100, deadline=None)
@given(TREES, TREES)
def test_diffs_are_symmetric(a, b):
    there, back = vcjax.diff(a, b), vcjax.diff(b, a)
    assert not vcjax.diff(a, a)
    assert bool(there) == bool(back)
    assert sorted(there.structure) == sorted(back.structure)
    opposite = {"added": "removed", "removed": "added"}
    for status, number in back.counts.items():
        assert number == there.counts[opposite.get(status, status)]
    assert json.loads(json.dumps(there.to_dict())) == there.to_dict()
    assert (
        json.loads(report.dumps(report.document("diff", there.to_dict())))["counts"] == there.counts
    )


def test_growth_from_zero_has_no_percentage():
    diff = vcjax.diff({"w": np.zeros(2)}, {"w": np.ones(2)})
    assert "l2 1.414 (from 0), max 1," in str(diff)
    shown = "\n".join(map(report.plain, report.diff_lines(diff)))
    assert "from 0" in shown
    assert "inf" not in str(diff) + shown


def test_keys_have_no_figures(repo):
    old, new = ({"key": jax.random.key(seed)} for seed in (0, 1))
    diff = vcjax.diff(old, new)
    assert statuses(diff) == {"key": "changed"}
    assert diff.changes[0].stats is None
    assert repo.diff(repo.commit(old), repo.commit(new)) == diff


def test_paths_and_stats_choose(repo):
    old = repo.commit({"a": {"w": ONE, "b": ONE}, "c": ONE})
    new = repo.commit({"a": {"w": TWO, "b": TWO}, "c": TWO})
    found = repo.diff(old, new, paths=["a/*"])
    assert statuses(found) == {"a/w": "changed", "a/b": "changed"}
    assert statuses(repo.diff(old, new, paths=["c"])) == {"c": "changed"}
    assert all(change.stats is None for change in repo.diff(old, new, stats=False).changes)
    with pytest.raises(TreeError, match="nowhere"):
        repo.diff(old, new, paths=["nowhere"])


def test_several_batches_give_one_diff(repo, monkeypatch):
    rng = np.random.default_rng(0)
    trees = [{f"w{i}": rng.standard_normal(50 + i) for i in range(9)} for _ in range(2)]
    old, new = map(repo.commit, trees)
    whole = repo.diff(old, new)
    assert whole == vcjax.diff(trees[0], trees[1])
    for limit in (1, 3000):
        monkeypatch.setattr(comparing, "BATCH_BYTES", limit)
        assert repo.diff(old, new) == whole


def test_batches_hold_what_fits():
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 1}
    assert list(diffing.batches(sizes, 7)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(diffing.batches({}, 7)) == []


def test_scalar_arrays_are_measured(repo):
    old, new = ({"s": np.float32(x), "n": np.array(x, np.int32)} for x in (2, 5))
    diff = vcjax.diff(old, new, stats="full")
    assert [figures(change)["l2"] for change in diff.changes] == [3, 3]
    assert repo.diff(repo.commit(old), repo.commit(new)) == vcjax.diff(old, new)
    based = vcjax.diff(old, new, base={"s": np.float32(1), "n": np.array(1)})
    assert figures(three_way(based))["cosine"] == pytest.approx(1)
