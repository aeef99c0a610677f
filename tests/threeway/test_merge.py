"""Merges of two branches: verdicts, resolutions, and histories with no base or with two."""

from datetime import UTC, datetime

import numpy as np
import pytest

from vcjax.errors import ConflictError, MergeError, RefError
from vcjax.history import Commit, merge_bases

pytestmark = pytest.mark.smoke

ZERO, ONE, TWO = (np.full(2, value, np.float32) for value in (0, 1, 2))
WIDE = np.full(2, 2, np.float64)


class _Absent:
    def __repr__(self):
        return "absent"


GONE = _Absent()


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "verdict", "merged"),
    [
        (ZERO, ZERO, ZERO, "unchanged", ZERO),
        (ZERO, ONE, ZERO, "ours", ONE),
        (ZERO, ZERO, ONE, "theirs", ONE),
        (ZERO, ONE, ONE, "same", ONE),
        (ZERO, ONE, TWO, "conflict", None),
        (ZERO, GONE, ZERO, "ours", GONE),
        (ZERO, ZERO, GONE, "theirs", GONE),
        (ZERO, GONE, GONE, "same", GONE),
        (ZERO, GONE, ONE, "structure", None),
        (ZERO, ONE, GONE, "structure", None),
        (GONE, ONE, GONE, "ours", ONE),
        (GONE, GONE, ONE, "theirs", ONE),
        (GONE, ONE, ONE, "same", ONE),
        (GONE, ONE, TWO, "conflict", None),
        (ZERO, ONE, np.ones(3, np.float32), "structure", None),
        (ZERO, ONE, WIDE, "structure", None),
        (ZERO, WIDE, ZERO, "ours", WIDE),
        (ZERO, ONE, 1, "structure", None),
        (1, 2, 3, "conflict", None),
        ([1, 2], [1, 2, 3], [1, 2], "ours", [1, 2, 3]),
        ([1, 2], [1, 2, 3], [5, 2], "structure", None),
        ([1, 2], (1, 2), [5, 2], "structure", None),
        ({"x": 1}, [1], {"x": 2}, "structure", None),
        ([1, 2], [5, 2], [1, 6], None, [5, 6]),
        ({"x": 1, "y": 1}, {"x": 2, "y": 1}, {"x": 1, "z": 3}, None, {"x": 2, "z": 3}),
    ],
    ids=str,
)
def test_verdicts(repo, base, ours, theirs, verdict, merged):
    def tree(value, **marks):
        return {"mine": 0, "yours": 0, **marks} | ({} if value is GONE else {"w": value})

    # Each side changes a leaf of its own, so that neither tree is taken as a whole.
    repo.commit(tree(base), "base")
    repo.branch("theirs")
    repo.commit(tree(theirs, yours=1), "theirs", branch="theirs")
    repo.commit(tree(ours, mine=1), "ours")
    plan = repo.plan_merge("main", "theirs")
    verdicts = {decision.path: decision.verdict for decision in plan.decisions}
    assert (verdicts.pop("mine"), verdicts.pop("yours")) == ("ours", "theirs")
    if verdict is not None:
        assert set(verdicts.values()) <= {verdict}
        assert verdicts or ours is theirs is GONE
    if merged is None:
        before = repo.branches
        with pytest.raises(ConflictError) as caught:
            repo.merge("main", "theirs")
        assert [path.partition(":")[0] for path in caught.value.paths] == ["w"]
        assert caught.value.hint
        assert repo.branches == before
        repo.merge("main", "theirs", resolve={"w": "theirs"})
        merged = theirs
    else:
        repo.merge("main", "theirs")
    result = repo.restore("main")
    assert ("w" in result) == (merged is not GONE)
    if merged is not GONE:
        np.testing.assert_equal(result["w"], merged)
    assert repo.fsck().ok


def test_merge_bookkeeping(repo):
    base = repo.commit({"w": 0}, "base")
    repo.branch("side")
    theirs = repo.commit({"w": 1}, "theirs", branch="side")
    assert repo.merge("main", "side") == theirs  # fast-forward
    assert repo.merge("main", "side") == theirs  # nothing to do
    assert repo.merge("side", base.digest[:10]) == theirs
    with pytest.raises(RefError, match="no branch"):
        repo.merge(base.digest, "side")
    repo.commit({"w": 2}, "", branch="side")
    repo.commit({"w": 3}, "")
    with pytest.raises(MergeError, match="no side"):
        repo.merge("main", "side", resolve="mine")
    merged = repo.merge("main", "side", resolve="base", metrics={"loss": 1})
    assert repo.restore() == {"w": 1}
    assert merged.provenance["bases"] == [theirs.digest]
    assert merged.provenance["decisions"] == {"w": "side"}
    assert merged.metrics == {"loss": 1.0}


def test_unrelated_histories(repo):
    repo.commit({"a": 1, "w": 1}, "one")
    root = repo.history.write_commit(
        Commit(
            *(repo.resolve("HEAD").manifest, repo.resolve("HEAD").tree),
            *((), "x", datetime.now(UTC), "unrelated"),
            leaves=2,
        )
    )
    repo.branch("alone", at=root)
    repo.switch("alone")
    repo.restore()
    repo.commit({"b": 2, "w": 2}, "its own")
    with pytest.raises(ConflictError, match="w"):
        repo.merge("main", "alone")
    repo.merge("main", "alone", resolve="base")
    assert repo.restore("main") == {"a": 1, "b": 2}  # the base has no w


def test_no_base_for_a_whole_tree(repo):
    repo.commit({"a": 1}, "one")
    first = repo.resolve("HEAD")
    root = Commit(first.manifest, first.tree, (), "x", datetime.now(UTC), "unrelated", leaves=1)
    repo.branch("alone", at=repo.history.write_commit(root))
    repo.commit([1, 2], "a list", branch="alone")
    repo.commit({"a": 2}, "a dict")
    with pytest.raises(ConflictError):
        repo.merge("main", "alone")
    with pytest.raises(MergeError, match="no base") as caught:
        repo.merge("main", "alone", resolve="base")
    assert caught.value.hint
    assert repo.restore("main") == {"a": 2}


def test_criss_cross(repo):
    """Two merge bases that agree on one leaf and disagree on another."""
    repo.commit({"a": 0, "b": 0}, "base")
    repo.branch("side")
    repo.commit({"a": 1, "b": 0}, "left")
    repo.commit({"a": 2, "b": 0}, "right", branch="side")
    left, right = repo.resolve("main"), repo.resolve("side")
    repo.merge("main", right, resolve="ours")
    repo.merge("side", left, resolve="ours")
    tips = repo.branches
    bases = merge_bases(tips["main"], tips["side"], repo.history.commit)
    assert sorted(bases) == sorted([left.digest, right.digest])
    repo.restore("main")
    repo.commit({"a": 1, "b": 5}, "b on main")
    with pytest.raises(ConflictError) as caught:
        repo.merge("main", "side")
    assert [path.partition(":")[0] for path in caught.value.paths] == ["a"]
    with pytest.raises(MergeError, match="no base"):
        repo.merge("main", "side", resolve="base")
    repo.merge("main", "side", resolve="theirs")
    assert repo.restore("main") == {"a": 2, "b": 5}
    assert repo.fsck().ok


@pytest.mark.parametrize("keys", [("a", "b", "c"), (3, 1, 2), (2.5, 1, 3)])
def test_merged_trees_have_the_digest_of_equal_trees(repo, keys):
    one, two, three = keys
    repo.commit({one: 0}, "base")
    repo.branch("side")
    repo.commit({one: 0, two: 1}, "ours")
    repo.commit({one: 0, three: 2}, "theirs", branch="side")
    merged = repo.merge("main", "side")
    again = repo.commit({one: 0, two: 1, three: 2}, "again", branch="again")
    assert merged.tree == again.tree
