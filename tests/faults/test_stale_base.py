"""What a writer counts on may be pruned by another one meanwhile."""

import numpy as np
import pytest

import vcjax


def big(value: float) -> np.ndarray:
    return np.full((300, 300), value, np.float32)


def small(value: float) -> np.ndarray:
    return np.full(200, value, np.float32)


@pytest.mark.parametrize("leaf", [big, small])
def test_leaves_of_a_pruned_base_are_stored_again(tmp_path, leaf):
    one = vcjax.Repository.init(tmp_path)
    one.commit({"w": leaf(1)}, "first")
    other = vcjax.Repository.open(tmp_path)
    other.commit({"w": leaf(2)}, "second")
    other.prune(["HEAD~1"], "a test")
    with pytest.raises(vcjax.ConflictError, match="changes the same leaves"):
        one.commit({"w": leaf(3), "ema": leaf(1)}, "conflicting")
    commit = one.commit({"w": leaf(1), "ema": leaf(1), "b": 1.0}, "from a stale base")
    restored = one.restore(commit)
    np.testing.assert_array_equal(restored["w"], leaf(2))
    np.testing.assert_array_equal(restored["ema"], leaf(1))
    assert one.fsck().ok


@pytest.mark.parametrize("leaf", [big, small])
def test_a_base_that_is_pruned_while_a_commit_is_under_way(tmp_path, monkeypatch, leaf):
    """The other writer strikes after the tree was staged and before the branch moves."""
    one = vcjax.Repository.init(tmp_path)
    one.commit({"w": leaf(1)}, "first")
    other = vcjax.Repository.open(tmp_path)
    write, strikes = one.objects.write, []

    def struck(leaves, known):
        entries = write(leaves, known)
        if not strikes:
            strikes.append(other.commit({"w": leaf(2)}, "second"))
            other.prune(["HEAD~1"], "a test")
        return entries

    monkeypatch.setattr(one.objects, "write", struck)
    commit = one.commit({"w": leaf(1), "ema": leaf(1)}, "third")
    assert strikes
    assert commit.parents == (strikes[0].digest,)
    np.testing.assert_array_equal(one.restore(commit)["ema"], leaf(1))
    assert vcjax.Repository.open(tmp_path).fsck().ok
