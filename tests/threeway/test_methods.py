"""`Repository.merge` with a method: which it takes, what it holds in memory, what it says."""

import ml_dtypes
import numpy as np
import pytest

import vcjax
from vcjax import merging
from vcjax.errors import ConflictError, MergeError
from vcjax.streaming import destination as outputs
from vcjax.streaming import job as jobs

NARROW = [
    name
    for name in (
        *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
        *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
    )
    if hasattr(ml_dtypes, name)
]


def forked(repo, base, ours, theirs):
    """Branches "ours" and "theirs" that come from one commit."""
    repo.commit(base)
    repo.branch("ours")
    repo.branch("theirs")
    for name, tree in (("ours", ours), ("theirs", theirs)):
        repo.switch(name)
        repo.restore()
        repo.commit(tree)


def numbers(seed):
    rng = np.random.default_rng(seed)
    return {f"layer{i}_w": rng.standard_normal((8, 10)) for i in range(4)}


@pytest.fixture
def fork(repo):
    forked(
        repo,
        *({"w": x, "n": numbers(i)} for i, x in enumerate(np.array([[0], [1], [3]], np.float32))),
    )
    return repo


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_floats_are_merged_in_float32_and_rounded_once(repo, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype))
    rng = np.random.default_rng(0)
    base, ours, theirs = (np.abs(rng.normal(size=99)).astype(kind) for _ in range(3))
    forked(repo, {"w": base}, {"w": ours}, {"w": theirs})
    repo.merge("ours", "theirs", method=merging.average())
    found = repo.restore("ours")["w"]
    mean = (ours.astype(np.float32) + theirs.astype(np.float32)) / 2
    assert found.dtype == kind
    np.testing.assert_array_equal(found.view(np.uint8), mean.astype(kind).view(np.uint8))


def test_narrow_floats_merge_with_a_base_in_memory():
    kind = ml_dtypes.float8_e4m3fn
    base, a, b = ({"w": np.array([x, 0.5], kind)} for x in (1, 2, 4))
    out = merging.merge([a, b], merging.task_arithmetic(scale=0.5), base=base)["w"]
    np.testing.assert_array_equal(np.asarray(out, np.float32), [3, 0.5])
    mixed = merging.merge([a, {"w": np.array([4, 1.5], np.float32)}])["w"]
    np.testing.assert_array_equal(np.asarray(mixed, np.float32), [3, 1])


def test_floats_that_jax_lacks_are_refused_in_memory():
    tree = {"w": np.ones(2, ml_dtypes.float6_e2m3fn)}
    with pytest.raises(MergeError, match=r"'w' is of float6_e2m3fn, of which JAX has no arrays"):
        merging.merge([tree, tree])


METHODS = {
    "average": (merging.average(), {}),
    "weighted": (merging.linear(), {"weights": [0.25, 0.75]}),
    "weights by path": (merging.linear(), {"weights": {"n/layer3_*": [1, 3], "w": [1, 0]}}),
    "random": (merging.dare_linear(density=0.5), {"key": 7}),
    "by leaf": (merging.ties(density=0.4), {}),
    "partition": (
        merging.partition(
            {"n/layer1_*": merging.slerp(t=0.3), "w": merging.keep()}, default=merging.linear()
        ),
        {"weights": [1, 2]},
    ),
    "masked": (merging.masked(merging.task_arithmetic(), "w"), {}),
    "whole model": (merging.ties_whole(density=0.3), {}),
}


@pytest.mark.parametrize("name", METHODS)
def test_many_short_slices_and_batches_merge_like_one(fork, monkeypatch, name):
    method, given = METHODS[name]
    start, trees = fork.resolve("ours"), []
    for length, batch in ((jobs.SMALL, outputs.BATCH_BYTES), (16, 1)):
        monkeypatch.setattr(jobs, "SMALL", length)
        monkeypatch.setattr(jobs, "SLICES", (length,))
        monkeypatch.setattr(outputs, "BATCH_BYTES", batch)
        fork.branch("ours", start, force=True)
        fork.merge("ours", "theirs", method=method, **given)
        trees.append(fork.restore("ours"))
    for path, leaf in trees[0]["n"].items():
        np.testing.assert_allclose(trees[1]["n"][path], leaf, rtol=1e-12)
    np.testing.assert_array_equal(trees[1]["w"], trees[0]["w"])
    assert fork.fsck().ok


def test_rules_and_weights_that_match_nothing_are_refused(fork):
    method = merging.partition({"typo": merging.average()}, default=merging.keep())
    with pytest.raises(MergeError, match="no leaf path matches 'typo'"):
        fork.merge("ours", "theirs", method=method)
    with pytest.raises(MergeError, match="no leaf path matches 'typo'"):
        fork.merge("ours", "theirs", method=merging.linear(), weights={"typo": [1, 2]})
    with pytest.raises(MergeError, match="no rule of the partition covers"):
        fork.merge("ours", "theirs", method=merging.partition({"w": merging.average()}))


@pytest.mark.parametrize(
    "method",
    ["average", {"name": "average"}, {"name": "average", "parameters": {}}, merging.average()],
)
def test_a_method_may_be_named(fork, method):
    commit = fork.merge("ours", "theirs", method=method)
    assert fork.restore("ours")["w"] == 2
    assert commit.provenance["method"] == {"name": "average", "parameters": {}}


def test_a_recorded_method_merges_again(fork):
    start = fork.resolve("ours")
    first = fork.merge("ours", "theirs", method=merging.ties(density=0.5))
    fork.branch("ours", start, force=True)
    assert fork.merge("ours", "theirs", method=first.provenance["method"]).tree == first.tree


@pytest.mark.parametrize(
    ("method", "message", "hint"),
    [
        ("avrage", "there is no merge method 'avrage'", "average"),
        (merging.average, "is no merge method", "method=average()"),
        ({"name": "ties", "parameters": {"densty": 1}}, "densty", None),
        ({"method": "ties"}, "is no merge method", "its name"),
        ({"name": "ties", "density": 1}, "is no merge method", "its name"),
        ("chain", "cannot be made of these parameters", "to_config"),
        (3, "3 is no merge method", "its name"),
    ],
)
def test_what_is_no_method_is_refused(fork, method, message, hint):
    before = fork.resolve("ours")
    with pytest.raises(MergeError) as caught:
        fork.merge("ours", "theirs", method=method)
    assert message in caught.value.message
    assert hint is None or hint in caught.value.hint
    assert fork.resolve("ours") == before


W = np.array([1, 2], np.float32)
STRUCTURES = {
    "deleted": ({"w": W, "b": W}, {"b": W}, {"w": W + 1, "b": W}),
    "shape": ({"w": W}, {"w": W[:1]}, {"w": W + 1}),
    "dtype": ({"w": W}, {"w": W.astype(np.float64)}, {"w": W + 1}),
    "container": ({"w": W}, {"w": [W]}, {"w": (W,)}),
}


@pytest.mark.parametrize("method", [None, "average"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_hints_settle_conflicts_that_are_not_of_numbers(repo, name, method):
    forked(repo, *STRUCTURES[name])
    with pytest.raises(ConflictError) as caught:
        repo.merge("ours", "theirs", method=method)
    assert caught.value.hint == "take one side with resolve={path: 'ours'}"
    assert caught.value.shell_hint == "take one side with --rule='PATH=ours'"
    repo.merge("ours", "theirs", method=method, resolve={"w": "ours"})


def test_hints_settle_conflicts_of_numbers(repo):
    forked(repo, {"w": W}, {"w": W + 1}, {"w": W + 2})
    with pytest.raises(ConflictError, match="changed 1 leaf differently") as caught:
        repo.merge("ours", "theirs")
    assert "method=vcjax.merging.average()" in str(caught.value.hint)
    assert "--method=average" in str(caught.value.shell_hint)
    assert "resolve={" not in str(caught.value.hint)
    assert "--rule" not in str(caught.value.shell_hint)
    assert vcjax.Repository.merge(repo, "ours", "theirs", method="average").parents


def test_hints_of_both_kinds(repo):
    forked(repo, {"v": W, "w": W}, {"v": W + 1, "w": W[:1]}, {"v": W + 2, "w": W + 1})
    with pytest.raises(ConflictError, match="changed 2 leaves differently") as caught:
        repo.merge("ours", "theirs")
    assert "method=vcjax.merging.average()" in str(caught.value.hint)
    assert "resolve={path: 'ours'}" in str(caught.value.hint)
    assert "--method=average" in str(caught.value.shell_hint)
    assert "--rule='PATH=ours'" in str(caught.value.shell_hint)
    commit = repo.merge("ours", "theirs", method="average", resolve={"w": "ours"})
    assert commit.provenance["decisions"] == {"v": "method", "w": "side"}


@pytest.mark.parametrize("name", ["average", "ties", "dare_ties", "model_stock"])
def test_64_bit_leaves_are_merged_in_64_bits(name):
    repo = vcjax.Repository.init(f"memory://wide-{name}")
    base = np.linspace(0, 1, 300)
    repo.commit({"w": base})
    repo.branch("a")
    repo.branch("b")
    repo.commit({"w": base + 1e-12}, branch="a")
    repo.commit({"w": base + 3e-12}, branch="b")
    method = vcjax.merging.from_config(name)
    merged = repo.restore(repo.merge("a", "b", method=method, key=0 if method.random else None))
    change = merged["w"] - base
    assert merged["w"].dtype == np.float64
    assert 0 < np.abs(change).max() < 1e-11  # float32 would round by 1e-8
