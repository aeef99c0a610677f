"""Diffs of commits: what is read, how much is held, and that figures are those of the whole."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vcjax
from vcjax.diffing import contents
from vcjax.diffing.statistics import OF_WHOLE_LEAVES
from vcjax.errors import CorruptionError, MissingObjectError
from vcjax.objects import read_parts as partial

from ..compiled import program_count
from .figures import figures

RNG = np.random.default_rng(0)
LARGE = RNG.standard_normal((5000, 1000)).astype(np.float32)  # five chunks


@pytest.fixture
def reads(monkeypatch):
    """(leaf path, first chunk, last chunk) of every read of a leaf object."""
    found, lock, read = [], threading.Lock(), partial.PartialReader.read

    def counted(self, path, first, last):
        with lock:
            found.append((path, first, last))
        return read(self, path, first, last)

    monkeypatch.setattr(partial.PartialReader, "read", counted)
    return found


def test_only_chunks_that_differ_are_read(repo, reads):
    new = LARGE.copy()
    new[1500, 7] += 1
    new[4999, 999] -= 2
    trees = [{"w": LARGE, "same": LARGE[:2000]}, {"w": new, "same": LARGE[:2000]}]
    old, new_commit = map(repo.commit, trees)
    diff = repo.diff(old, new_commit)
    assert sorted(set(reads)) == [("w", 1, 1), ("w", 4, 4)]
    [change] = diff.with_status("changed")
    memory = figures(vcjax.diff(trees[0], trees[1]).with_status("changed")[0])
    for name in ("l2", "max_abs", "changed", "fraction_changed", "rows_touched", "blocks_touched"):
        assert figures(change)[name] == memory[name], name
    assert change.stats["coverage"] == pytest.approx(0.4)
    assert memory["coverage"] == 1
    assert memory["norm_old"] == pytest.approx(np.linalg.norm(LARGE.astype(np.float64)), rel=1e-9)
    assert change.shared == pytest.approx(0.6)
    assert diff.contextual_divergence == pytest.approx(0.2)
    for stats in ("whole", "full"):
        found = figures(repo.diff(old, new_commit, stats=stats).with_status("changed")[0])
        assert {name: found[name] for name in memory} == memory or stats == "full"
        assert found["norm_old"] == memory["norm_old"]
        assert found["coverage"] == 1


def test_no_figure_of_a_leaf_read_in_part_means_something_else(repo):
    """It is the one of the same two trees in memory, or None, and so is that of its module."""
    new = LARGE.copy()
    new[1500:2300] *= np.float32(1.5)  # as a whole chunk would be a scaled one
    trees = [{"m": {"w": LARGE, "v": LARGE[:1500] + step}, "n": 1} for step in (0, 1)]
    trees[1]["m"]["w"] = new
    parts, whole = repo.diff(*map(repo.commit, trees)), vcjax.diff(trees[0], trees[1])
    pairs = list(zip(parts.changes, whole.changes, strict=True))
    pairs += list(zip(parts.rollup(1), whole.rollup(1), strict=True))
    unknown = set()
    for part, known in pairs:
        for name, value in (known.stats or {}).items():
            if name == "coverage":
                continue
            if part.stats[name] is None:
                unknown.add(name)
            elif isinstance(value, float):
                assert part.stats[name] == pytest.approx(value, rel=1e-12), name
            else:
                assert part.stats[name] == value, name
    assert unknown == set(OF_WHOLE_LEAVES)
    assert {c.path: c.stats["coverage"] for c in parts.changes[:2]} == {"m/v": 1.0, "m/w": 0.4}
    for text in (str(parts), parts.to_markdown(), parts._repr_html_()):
        assert "None" not in text
        assert "m/w" in text
    assert parts.to_dict()["changes"][1]["stats"]["relative_l2"] is None


def test_figures_of_commits_are_those_of_their_trees(repo):
    trees = [
        {f"w{i}": RNG.standard_normal((i + 1, 700)).astype(np.float32) for i in range(40)}
        | {"large": LARGE + step, "n": step, "half": LARGE[:9].astype(np.float16) + step}
        for step in (0, 1)
    ]
    assert repo.diff(*map(repo.commit, trees)) == vcjax.diff(trees[0], trees[1])


def test_a_stored_difference_is_read_as_what_it_stands_for(repo):
    new = LARGE.copy()
    new[10] = 3
    newer = new.copy()
    newer[4000:] += 1
    commits = [repo.commit({"w": w}) for w in (LARGE, new, newer)]
    diff = repo.diff(commits[0], commits[2])
    expected = vcjax.diff({"w": LARGE}, {"w": newer})
    assert figures(diff.changes[0])["l2"] == figures(expected.changes[0])["l2"]
    assert figures(diff.changes[0])["changed"] == 1000 * 1001


@pytest.mark.parametrize("damage", ["changed", "cut short", "gone"])
def test_a_damaged_chunk_is_reported(repo, damage):
    old, new = repo.commit({"w": LARGE}), repo.commit({"w": LARGE + 1})
    digest = repo.manifest(new).leaves["w"].digest
    [chunk] = (repo_folder(repo) / f"leaves/{digest[:2]}/{digest}").glob("c/3/0")
    data = bytearray(chunk.read_bytes())
    data[1000] ^= 1
    if damage == "gone":
        chunk.unlink()
    else:
        chunk.write_bytes(data if damage == "changed" else data[:-1])
    with pytest.raises(CorruptionError if damage != "gone" else MissingObjectError, match="'w'"):
        repo.diff(old, new)


def repo_folder(repo):
    from pathlib import Path

    return Path(repo.url.removeprefix("file://"))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), max_size=3).filter(lambda s: np.prod(s) < 5000),
    run=st.sampled_from([64, 500, 10_000]),
    chunk=st.sampled_from([48, 300]),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_runs_put_together_are_the_leaf(shape, run, chunk, seed, share):
    """However a leaf is cut, figures, rows, columns and blocks are the same."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal(shape).astype(np.float32)
    mask = rng.random(shape) < share
    new = np.where(mask, old + np.float32(0.5), old).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "RUN_BYTES", run)
        patch.setattr("vcjax.hashing.grid.CHUNK_BYTES", chunk)
        clear_grid()
        [change] = vcjax.diff({"w": old}, {"w": new}).changes
    clear_grid()
    changed = (old != new).reshape(-1, shape[-1] if shape else 1)
    if not changed.any():
        assert change.stats is None
        return
    cut = figures(change)
    assert cut["changed"] == changed.sum()
    assert (cut["rows_touched"], cut["rows"]) == (changed.any(1).sum(), len(changed))
    assert cut["columns_touched"] == changed.any(0).sum()
    tiles = {(i // 64, j // 64) for i, j in zip(*np.nonzero(changed), strict=True)}
    assert cut["blocks_touched"] == len(tiles)
    wide = [x.astype(np.float64) for x in (old, new)]
    assert cut["l2"] == pytest.approx(np.linalg.norm(wide[1] - wide[0]), rel=2e-7)
    assert cut["norm_old"] == pytest.approx(np.linalg.norm(wide[0]), rel=2e-7)


def clear_grid():
    from vcjax.hashing import grid

    grid._cut_axis.cache_clear()
    grid.chunk_shape.cache_clear()


def test_sums_are_of_float64_quality():
    """A million terms of one sign, where float32 sums lose digits."""
    old = np.abs(RNG.standard_normal(3_000_000)).astype(np.float32) + np.float32(1)
    new = old * np.float32(1.0001)
    stats = figures(vcjax.diff({"w": old}, {"w": new}).changes[0])
    a, b = old.astype(np.float64), new.astype(np.float64)
    assert stats["norm_old"] == pytest.approx(np.linalg.norm(a), rel=1e-8)
    assert stats["l2"] == pytest.approx(np.linalg.norm(b - a), rel=1e-8)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert stats["cosine"] == pytest.approx(cosine, rel=1e-8)


def test_hundreds_of_shapes_are_one_compilation():
    from vcjax.diffing import kernel

    trees = [
        {f"w{i}": RNG.standard_normal((3, i + 6000)).astype(np.float32) for i in range(100)}
        for _ in range(2)
    ]
    vcjax.diff({"w": np.ones(20_000, np.float32)}, {"w": np.zeros(20_000, np.float32)})
    before = program_count(kernel._pass)
    vcjax.diff(trees[0], trees[1])
    assert program_count(kernel._pass) == max(1, before)


def test_modules_are_rolled_up():
    old = {"a": {"x": np.ones(3), "y": {"z": np.zeros(2)}}, "b": np.ones(1), "n": 1}
    new = {"a": {"x": np.full(3, 2.0), "y": {"z": np.ones(2)}}, "b": np.ones(1), "n": 2}
    diff = vcjax.diff(old, new)
    modules = {module.path: module for module in diff.rollup(1)}
    assert list(modules) == ["a", "b", "n"]
    assert modules["a"].counts == {"changed": 2}
    assert modules["b"].stats is None
    stats = figures(modules["a"])
    joined = np.array([1, 1, 1, 0, 0.0]), np.array([2, 2, 2, 1, 1.0])
    assert stats["l2"] == pytest.approx(5**0.5)
    assert stats["elements"] == stats["changed"] == 5
    cosine = joined[0] @ joined[1] / np.linalg.norm(joined[0]) / np.linalg.norm(joined[1])
    assert stats["cosine"] == pytest.approx(cosine)
    assert stats["alignment"] == pytest.approx(3 / np.sqrt(3 * 5))
    assert [m.path for m in diff.rollup(None)] == ["", "a", "a/y"]
    assert [m.depth for m in diff.rollup(None)] == [0, 1, 2]
    [whole] = diff.rollup(0)
    assert figures(whole)["l2"] == stats["l2"]
    assert whole.to_dict()["counts"] == {"changed": 3, "unchanged": 1}
