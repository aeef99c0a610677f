"""A merge commit says enough to make it again."""

import jax
import numpy as np
import pytest

from vcjax import formats, merging
from vcjax.errors import MergeError, PrunedError


def numbers(seed):
    rng = np.random.default_rng(seed)
    tree = {f"layer{i}": rng.standard_normal((8, 10)).astype(np.float32) for i in range(3)}
    return {**tree, "n": seed}


@pytest.fixture
def fork(repo):
    repo.commit(numbers(0), "base")
    for seed, name in enumerate(["one", "two"], start=1):
        repo.branch(name, at="main")
        repo.commit(numbers(seed), name, branch=name)
    return repo


ORDERED = {"layer1": merging.keep(), "layer*": merging.average(), "**": merging.linear()}

MERGES = {
    "sides": {"resolve": {"layer0": "theirs", "**": "ours"}},
    "base": {"resolve": "base"},
    "average": {"method": "average"},
    "weights": {"method": "linear", "weights": [3, 1]},
    "weights by path": {"method": "linear", "weights": {"layer1": [0, 1], "layer*": [1, 0]}},
    "random": {"method": merging.dare_ties(density=0.4), "key": 7},
    "random, typed key": {"method": merging.dare_linear(), "key": jax.random.key(3)},
    "random, other generator": {
        "method": merging.dare_linear(),
        "key": jax.random.key(3, impl="rbg"),
    },
    "random, words": {"method": merging.dare_linear(), "key": jax.random.PRNGKey(5)},
    "rules before a method": {"method": "slerp", "resolve": {"layer2": "base"}},
    "order of a partition": {"method": merging.partition(ORDERED)},
}


@pytest.mark.parametrize("name", MERGES)
def test_the_same_comes_out(fork, name):
    given = MERGES[name]
    if name == "rules before a method":
        given = {**given, "resolve": {"layer2": "base", "**": "method"}}
    commit = fork.merge("one", "two", **given)
    before = set(fork.store.keys())
    found = fork.merges.rerun("one")
    assert found.is_same
    assert (found.tree, found.differing, found.inputs_differ) == (commit.tree, (), None)
    assert set(fork.store.keys()) == before  # nothing is stored


def test_the_order_of_globs_is_recorded(fork):
    fork.merge("one", "two", method=merging.partition(ORDERED))
    one, two = numbers(1), numbers(2)
    merged = fork.restore("one")
    np.testing.assert_array_equal(merged["layer1"], one["layer1"])  # without a base
    np.testing.assert_allclose(merged["layer0"], (one["layer0"] + two["layer0"]) / 2, rtol=1e-6)
    method = fork.resolve("one").provenance["method"]
    assert list(dict(method["parameters"]["rules"]["items"])) == list(ORDERED)


def test_what_is_not_so_is_found_out(fork):
    """A commit that claims another method than the one that made it."""
    commit = fork.merge("one", "two", method="average")
    claimed = {**commit.provenance, "method": merging.to_config(merging.linear())}
    claimed["weights"] = [3, 1]
    tree = fork.restore("one")
    forged = fork.commit(tree, "forged", branch="one", provenance=claimed)
    found = fork.merges.rerun(forged)
    assert not found.is_same
    assert found.differing == ("layer0", "layer1", "layer2")
    assert found.tree != commit.tree
    assert "the branch had moved" in found.inputs_differ
    assert found.to_dict()["recorded_tree"] == commit.tree


def test_commits_that_are_no_merges_or_do_not_say_how(fork):
    with pytest.raises(MergeError, match="records no merge"):
        fork.merges.rerun("one")
    commit = fork.merge("one", "two", method="average")
    lacking = {name: value for name, value in commit.provenance.items() if name != "rules"}
    former = fork.commit(numbers(9), "old", branch="one", provenance=lacking)
    with pytest.raises(MergeError, match="does not record its rules"):
        fork.merges.rerun(former)
    wrong = {**commit.provenance, "method": None}
    former = fork.commit(numbers(8), "wrong", branch="one", provenance=wrong)
    with pytest.raises(MergeError, match="does not settle its 4 conflicts"):
        fork.merges.rerun(former)


def test_data_that_were_pruned(fork):
    old = fork.resolve("two")
    fork.merge("one", "two", method="average")
    fork.commit(numbers(5), "further", branch="two")
    fork.prune([old], "test")
    with pytest.raises(PrunedError):
        fork.merges.rerun("one")


def test_merges_of_whole_models(fork, tmp_path):
    file = tmp_path / "model.msgpack"
    formats.write(file, numbers(4))
    commit = fork.merge_models(
        ["one", "two"], merging.dare_linear(), base="main", key=jax.random.key(1), weights=[1, 2]
    )
    assert fork.merges.rerun(commit).is_same
    commit = fork.merge_models(["one", str(file)], "average", dtype="float16")
    found = fork.merges.rerun(commit)
    assert found.is_same
    assert "files may have changed" in found.inputs_differ
    formats.write(file, numbers(5))
    assert len(fork.merges.rerun(commit).differing) == 3
