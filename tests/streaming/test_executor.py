"""Merging whole models leaf by leaf: it agrees with `vcjax.merge`, goes on, and holds little."""

import weakref
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.typing import DTypeLike

import vcjax
from vcjax import formats, merging, tree
from vcjax.errors import MergeError, RevisionError, StorageError, StructureError
from vcjax.formats.sharded import read_folder
from vcjax.orbax.files.merge_input import of_orbax
from vcjax.streaming import destination as outputs
from vcjax.streaming import job as jobs
from vcjax.streaming import model as models
from vcjax.streaming import slice_run as slice_runs
from vcjax.streaming.merge import Merge, to_files

from ..compiled import clear_programs, program_count
from .executed import merged

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"embed": (150, 2, 40), "bias": (9000,), "t": ()}


pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(autouse=True)
def short_slices(monkeypatch):
    """So that small leaves are cut into several slices, the last of them padded."""
    monkeypatch.setattr(jobs, "SLICES", (1 << 12,))
    monkeypatch.setattr(jobs, "SMALL", 1 << 8)


def numbers(seed, dtype: DTypeLike = BFLOAT16):
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99)
    return {
        name: np.asarray(base.normal(size=shape) + 0.1 * seed * rng.normal(size=shape), dtype)
        for name, shape in SHAPES.items()
    }


METHODS = {
    "linear": (merging.linear(), 4, {"weights": [1, 2, 3, 4]}),
    "folded in slices": (merging.average(), 11, {}),
    "task_arithmetic": (merging.task_arithmetic(0.7), 2, {}),
    "ties": (merging.ties(0.2), 3, {}),
    "ties, density per model": (merging.ties((0.1, 0.5, 1.0)), 3, {}),
    "ties, all ties": (merging.ties(0.3, tie_rule=">=", rounding="floor"), 3, {}),
    "ties, folded in slices": (merging.ties(0.2), 10, {}),
    "dare_ties": (merging.dare_ties(0.5), 3, {"key": 3}),
    "dare_linear, norm restored": (merging.dare_linear(0.5, rescale="l1"), 3, {"key": 3}),
    "folded whole": (merging.della_linear(0.5, axis=0), 2, {"key": 2}),
    "della": (merging.della(0.5), 2, {"key": 1}),
    "sce": (merging.sce(), 3, {}),
    "slerp": (merging.slerp(0.3), 2, {}),
    "nuslerp": (merging.nuslerp(), 2, {"weights": [1, 3]}),
    "karcher": (merging.karcher(), 3, {}),
    "model_stock": (merging.model_stock(), 3, {}),
    "whole model": (merging.ties_whole(0.3), 2, {}),
    "whole leaf": (merging.model_stock(filter_wise=True), 2, {}),
    "partition": (
        merging.partition({"e*": merging.slerp(0.2)}, default=merging.task_arithmetic()),
        *(2, {}),
    ),
}


def some_slow(names, *slow):
    """All names as parameters, of which some take long to compile."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.mark.parametrize("name", some_slow(METHODS, "whole model", "ties, density per model"))
def test_it_agrees_with_merge(name):
    method, count, given = METHODS[name]
    trees, base = [numbers(i + 1) for i in range(count)], None
    if method.needs_base:
        base = numbers(0)
    want = vcjax.merge(trees, method, base=base, **given)
    found = merged(method, trees, base, **given)
    for path, leaf in found.items():
        assert leaf.dtype == BFLOAT16
        # Sums over slices differ from sums over leaves in the last bits of float32, which
        # may round to another bfloat16.
        expected = np.asarray(want[path], np.float32)
        np.testing.assert_allclose(leaf.astype(np.float32), expected, rtol=2**-7, atol=1e-6)
        assert np.mean(leaf.astype(np.float32) != expected) < 0.01


@pytest.mark.parametrize(
    ("method", "dtypes"),
    [
        (merging.linear(), (np.float32, BFLOAT16)),
        (merging.linear(), (BFLOAT16, np.float64)),
        (merging.ties(0.3), (np.float32, np.float64)),
        (merging.ties(0.3), (np.float64, BFLOAT16)),
        (merging.ties(0.3), (*(np.float32,) * 9, np.float64)),
        (merging.breadcrumbs(0.3), (BFLOAT16, np.float64)),
    ],
)
def test_dtypes_may_be_mixed_and_chosen(method, dtypes):
    weights = range(1, 1 + len(dtypes))
    trees = [numbers(i + 1, dtype) for i, dtype in enumerate(dtypes)]
    base = numbers(0) if method.needs_base else None
    want = vcjax.merge(trees, method, base=base, weights=weights, dtype=np.float32)
    found = merged(method, trees, base, weights=weights, dtype=np.float32)
    for path, leaf in found.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, want[path], rtol=1e-6, atol=1e-7)


def test_what_has_no_mean_is_the_first_models():
    trees = [{"n": np.int32(i), "w": np.array([i, 2 * i], np.float32)} for i in (1, 3)]
    found = merged(merging.average(), trees)
    assert found["n"] == 1
    np.testing.assert_array_equal(found["w"], [2, 4])


@pytest.mark.parametrize("name", ["ties", "dare_ties", "karcher"])
def test_slices_may_be_spread_over_devices(name):
    method, count, given = METHODS[name]
    trees = [numbers(i + 1, np.float32) for i in range(count)]
    base = numbers(0, np.float32) if method.needs_base else None
    one = merged(method, trees, base, **given)
    several = merged(method, trees, base, devices=jax.devices()[:4], **given)
    for path in one:
        np.testing.assert_allclose(several[path], one[path], rtol=1e-5, atol=1e-6)


def test_hundreds_of_shapes_take_few_programs():
    clear_programs(slice_runs._merge_into)
    rng = np.random.default_rng(0)
    trees = [{f"w{i}": rng.normal(size=(i + 1, 97)).astype(np.float32) for i in range(150)}] * 2
    merged(merging.average(), trees)
    assert program_count(slice_runs._merge_into) <= 2  # long leaves, and small ones


def test_a_hundred_models_are_held_one_leaf_at_a_time(monkeypatch):
    monkeypatch.setattr("vcjax.streaming.executor.HELD_BYTES", 1)
    alive, most = set(), [0]

    def lazy(number):
        def read():
            array = np.full((50, 100), number, np.float32)
            token = object()
            alive.add(id(token))
            weakref.finalize(array, lambda: alive.discard(id(token)))
            most[0] = max(most[0], len(alive))
            return array

        return tree.LazyArray((50, 100), np.dtype(np.float32), read)

    found = merged(merging.average(), [{"w": lazy(i), "v": lazy(i)} for i in range(100)])
    np.testing.assert_allclose(found["w"], np.full((50, 100), 49.5), rtol=1e-6)
    assert most[0] <= 6  # read ahead, waiting, computed


@pytest.fixture
def files(tmp_path):
    """A base and two models in files, and their trees."""
    trees = [numbers(i) for i in range(3)]
    for i, content in enumerate(trees):
        formats.write(tmp_path / f"{i}.safetensors", content, {"format": "pt"})
    return [str(tmp_path / f"{i}.safetensors") for i in range(3)], trees


def test_commits_files_and_orbax_mix(repo, files, tmp_path):
    names, trees = files
    repo.commit(trees[0], "base")
    saved = (tmp_path / "orbax").resolve()
    with ocp.CheckpointManager(saved) as manager:
        manager.save(1, args=ocp.args.StandardSave(trees[2]))
        manager.wait_until_finished()
    sources = ["HEAD", names[1], of_orbax(saved)]
    commit = repo.merge_models(sources, "ties", base=names[0], message="all")
    assert commit.provenance["inputs"][:2] == [{"commit": commit.parents[0]}, {"file": names[1]}]
    assert commit.provenance["method"]["name"] == "ties"
    want = vcjax.merge(trees, merging.ties(), base=trees[0])
    for path, leaf in repo.restore().items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(want[path]))
    assert repo.fsck().ok
    assert not list((Path(repo.url) / "merging").glob("*"))


@pytest.mark.parametrize("shape", [(700, 2048), (2, 1_200_000)])
def test_large_leaves_of_commits_are_read_in_parts(repo, monkeypatch, shape):
    monkeypatch.setattr(jobs, "SLICES", (1 << 20,))
    monkeypatch.setattr(models, "WHOLE_BYTES", 1 << 22)
    monkeypatch.setattr(models, "_read_one", lambda *leaf: pytest.fail(f"{leaf[1]} is read whole"))
    rng = np.random.default_rng(0)
    trees = [{"w": rng.normal(size=shape).astype(np.float32)} for _ in range(3)]
    commits = [repo.commit(content).digest for content in trees]
    repo.merge_models(commits[1:], "ties", base=commits[0])
    want = vcjax.merge(trees[1:], merging.ties(), base=trees[0])
    np.testing.assert_array_equal(repo.restore()["w"], np.asarray(want["w"]))


class Killed(BaseException):
    """Ends a merge where nobody expects it."""


@pytest.fixture
def layers(tmp_path):
    """A base and two models of many leaves, each one slice, in files, and their trees.

    So when a merge is killed at its end, few leaves are under way.
    """
    rng = np.random.default_rng(0)
    trees = [
        {f"w{i}": rng.normal(size=(40, 40)).astype(np.float32) for i in range(12)} for _ in range(3)
    ]
    for i, content in enumerate(trees):
        formats.write(tmp_path / f"{i}.safetensors", content, {"format": "pt"})
    return [str(tmp_path / f"{i}.safetensors") for i in range(3)], trees


def killed_at(share):
    def progress(done, total):
        if done >= share * total:
            raise Killed

    return progress


def test_a_killed_merge_into_a_commit_goes_on(repo, layers, monkeypatch):
    monkeypatch.setattr(outputs, "BATCH_BYTES", 1)
    names, trees = layers
    repo.commit({"other": 1}, "something")
    method = merging.task_arithmetic()
    with pytest.raises(Killed):
        repo.merge_models(names[1:], method, base=names[0], progress=killed_at(0.99))
    assert repo.resolve("HEAD").message == "something"
    calls = []
    again = vcjax.Repository.open(repo.url)
    again.merge_models(
        names[1:], method, base=names[0], progress=lambda done, total: calls.append(total)
    )
    whole = sum(3 * leaf.nbytes for leaf in trees[0].values())
    assert calls[0] < whole / 2
    want = vcjax.merge(trees[1:], method, base=trees[0])
    for path, leaf in again.restore().items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(want[path]))
    assert again.fsck().ok


def test_what_a_killed_merge_noted_is_collected(repo, layers, monkeypatch):
    monkeypatch.setattr(outputs, "BATCH_BYTES", 1)
    names, trees = layers
    repo.commit(trees[0], "something")
    with pytest.raises(Killed):
        repo.merge_models(names[1:], "average", progress=killed_at(0.99))
    notes = Path(repo.url) / "merging"
    assert len(list(notes.iterdir())) == 1
    assert len(repo.gc().leftovers) == 0  # it is young: the merge may be taken up again
    assert len(repo.gc(unsafe=True).leftovers) == 1
    assert not list(notes.glob("*"))
    assert repo.fsck().ok


def test_a_killed_merge_into_files_goes_on(layers, tmp_path, monkeypatch):
    monkeypatch.setattr("vcjax.formats.sharded.NOTE_BYTES", 1)
    names, trees = layers

    def merge(weights, progress=None):
        sources = tuple(map(models.of_file, names))
        given = Merge(sources, merging.linear(), weights=weights)
        return to_files(given, tmp_path / "out", progress=progress, shard_bytes=20_000)

    with pytest.raises(Killed):
        merge([1, 2, 3], killed_at(0.9))
    assert not list((tmp_path / "out").glob("*.safetensors"))
    totals = []
    merge([1, 2, 3], lambda done, total: totals.append(total))
    assert totals[0] < sum(3 * leaf.nbytes for leaf in trees[0].values()) / 2
    want = vcjax.merge(trees, merging.linear(), weights=[1, 2, 3])
    found = read_folder(tmp_path / "out").tree
    assert found.keys() == want.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, np.asarray(want[path]))
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []
    with pytest.raises(StorageError, match="holds a model already"):
        merge([1, 2, 3])


def test_another_merge_into_the_same_folder_starts_anew(layers, tmp_path, monkeypatch):
    monkeypatch.setattr("vcjax.formats.sharded.NOTE_BYTES", 1)
    names, trees = layers
    sources = tuple(map(models.of_file, names))
    with pytest.raises(Killed):
        to_files(Merge(sources, merging.linear()), tmp_path / "out", progress=killed_at(0.9))
    to_files(Merge(sources, merging.linear(), weights=[1, 0, 0]), tmp_path / "out")
    for path, leaf in read_folder(tmp_path / "out").tree.items():
        np.testing.assert_array_equal(leaf, trees[0][path])


def test_a_killed_three_way_merge_goes_on(repo, layers, monkeypatch):
    monkeypatch.setattr(outputs, "BATCH_BYTES", 1)
    base, *trees = layers[1]
    repo.commit(base, "base")
    for name, content in zip("ab", trees, strict=True):
        repo.branch(name, at="main")
        repo.commit(content, name, branch=name)
    with pytest.raises(Killed):
        repo.merge("a", "b", method="average", progress=killed_at(0.99))
    totals = []
    commit = repo.merge("a", "b", method="average", progress=lambda _, total: totals.append(total))
    assert totals[0] < sum(2 * leaf.nbytes for leaf in base.values()) / 2
    assert set(commit.provenance["decisions"].values()) == {"method"}
    want = vcjax.merge(trees)
    for path, leaf in repo.restore("a").items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(want[path]))


def test_models_that_differ_are_refused(repo, files):
    names, trees = files
    repo.commit({**trees[0], "embed": np.zeros((2, 2)), "more": 1}, "other")
    with pytest.raises(StructureError) as caught:
        repo.merge_models([names[0], "HEAD"], "average")
    assert list(caught.value.problems) == [
        "embed: [150, 2, 40] in model 1, [2, 2] in model 2",
        "more: in model 2 only",
    ]
    with pytest.raises(MergeError, match="ties needs the base model"):
        repo.merge_models(names, "ties")
    with pytest.raises(RevisionError):
        repo.merge_models([names[0], "nowhere"], "average")
