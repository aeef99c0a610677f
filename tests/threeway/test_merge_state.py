"""Merges that are kept while they have conflicts: continued, dropped, watched, killed."""

import json
import signal

import numpy as np
import pytest

import vcjax
from vcjax import Repository, merging
from vcjax.errors import ConflictError, CorruptionError, MergeError

from .sides import OURS, W


@pytest.fixture
def begun(fork):
    """The same with a merge under way."""
    with pytest.raises(ConflictError):
        fork.merge("main", "side", message="both", metrics={"loss": 1}, keep_conflicts=True)
    return fork


def test_a_merge_with_conflicts_is_kept_and_moves_nothing(fork):
    before = fork.branches
    with pytest.raises(ConflictError) as caught:
        fork.merge("main", "side", resolve={"p/a": "theirs"}, keep_conflicts=True)
    assert "repo.merges.resume()" in str(caught.value.hint)
    assert "vcjax merge --continue" in str(caught.value.shell_hint)
    assert fork.branches == before
    progress = Repository.open(fork.url).merges.get()
    assert progress is not None
    assert progress.settled == {"p/a": "theirs"}
    assert list(progress.left) == ["n", "p/b", "q"]
    assert progress.request.names == ("main", "side")
    assert not progress.has_moved


def test_without_being_asked_to_nothing_is_kept(fork):
    with pytest.raises(ConflictError) as caught:
        fork.merge("main", "side")
    assert "--continue" not in str(caught.value.hint)
    assert fork.merges.get() is None
    assert fork.merges.all() == []


def test_decisions_add_up(begun):
    with pytest.raises(ConflictError) as caught:
        begun.merges.resume(resolve={"p/*": "theirs", "n": "base"})
    assert [path.partition(":")[0] for path in caught.value.paths] == ["q"]
    again = Repository.open(begun.url)
    with pytest.raises(ConflictError):
        again.merges.resume(resolve={"p/a": "ours"})  # later ones go before
    commit = Repository.open(begun.url).merges.resume(resolve="ours")
    assert (commit.message, commit.metrics) == ("both", {"loss": 1.0})
    assert commit.provenance is not None
    assert commit.parents == (commit.provenance["inputs"][0], begun.branches["side"])
    tree = begun.restore("main")
    np.testing.assert_array_equal(tree["p"]["a"], W + 1)
    np.testing.assert_array_equal(tree["p"]["b"], W + 3)
    np.testing.assert_array_equal(tree["p"]["c"], W + 3)
    np.testing.assert_array_equal(tree["q"], W + 1)
    assert tree["n"] == 1
    assert begun.merges.get() is None
    assert begun.merges.rerun(commit).is_same
    assert begun.fsck().ok


def test_a_method_settles_what_is_left(begun):
    with pytest.raises(ConflictError) as caught:
        begun.merges.resume(resolve={"p/a": "ours"}, method="average")
    assert [path.partition(":")[0] for path in caught.value.paths] == ["q"]
    commit = begun.merges.resume(resolve={"q": "theirs"})
    assert commit.provenance["decisions"] == {
        "n": "first",
        "p/a": "side",
        "p/b": "method",
        "p/c": "theirs",
        "q": "side",
    }
    np.testing.assert_array_equal(begun.restore()["p"]["b"], W + 2)


def test_rules_may_leave_some_leaves_to_the_method(begun):
    with pytest.raises(ConflictError) as caught:
        begun.merges.resume(resolve={"p/b": "method"}, method=merging.average())
    assert [path.partition(":")[0] for path in caught.value.paths] == ["n", "p/a", "q"]
    begun.merges.resume(resolve="ours")
    tree = begun.restore()
    np.testing.assert_array_equal(tree["p"]["a"], W + 1)
    np.testing.assert_array_equal(tree["p"]["b"], W + 2)


def test_what_makes_no_sense_is_not_kept(begun):
    state = begun.kept_merges.get("refs/heads/main")
    with pytest.raises(MergeError, match="no side of a merge"):
        begun.merges.resume(resolve={"q": "mine"})
    with pytest.raises(MergeError, match="draws random numbers"):
        begun.merges.resume(method="dare_linear", resolve={"q": "ours"})
    assert begun.kept_merges.get("refs/heads/main") == state
    commit = begun.merges.resume(method="dare_linear", resolve={"q": "ours"}, key=3)
    assert commit.provenance["key"] == 3
    assert begun.merges.rerun().is_same


def test_dropping_a_merge(begun):
    before = begun.branches
    begun.merges.abort()
    assert begun.branches == before
    assert begun.merges.get() is None
    with pytest.raises(MergeError, match="no merge into 'main' is under way"):
        begun.merges.abort()
    with pytest.raises(MergeError, match="no merge into 'main' is under way") as caught:
        begun.merges.resume()
    assert "begins one" in str(caught.value.hint)
    begun.merge("main", "side", resolve="ours")


def test_a_second_merge_into_the_branch_is_refused(begun):
    begun.branch("third", "main~1")
    with pytest.raises(MergeError, match="a merge of side into 'main' is under way") as caught:
        begun.merge("main", "third", resolve="ours")
    assert "--abort" in str(caught.value.shell_hint)
    with pytest.raises(MergeError, match="under way"):
        Repository.open(begun.url).merge("main", "side", keep_conflicts=True)
    begun.merge("third", "side")  # into another branch


def test_each_branch_has_a_merge_of_its_own(begun):
    begun.branch("two", "main")
    with pytest.raises(ConflictError):
        begun.merge("two", "side", keep_conflicts=True)
    begun.switch("side")
    with pytest.raises(MergeError, match="into 'side'") as caught:
        begun.merges.resume()
    assert "main and two" in str(caught.value.hint)
    assert begun.merges.resume("two", resolve="theirs").tree != begun.resolve("main").tree
    assert [p.request.short for p in begun.merges.all()] == ["main"]


def test_a_detached_head(begun):
    begun.merges.abort()
    begun.switch("main", detach=True)
    with pytest.raises(ConflictError):
        begun.merge("side", keep_conflicts=True)
    commit = begun.merges.resume(resolve="theirs")
    assert begun.head.commit == commit.digest
    assert begun.branches["main"] != commit.digest


def test_a_branch_that_has_moved(begun):
    begun.merges.decide(resolve={"p/a": "theirs", "q": "ours"})
    start = begun.resolve("main")
    moved = begun.commit({**OURS, "q": W + 9, "n": 1}, "meanwhile")
    with pytest.raises(ConflictError, match="'main' has moved to") as caught:
        begun.merges.resume(resolve="theirs")
    assert start.digest[:8] in caught.value.message
    assert "--replan" in str(caught.value.shell_hint)
    progress = begun.merges.get()
    assert progress.has_moved
    assert progress.settled == {"p/a": "theirs", "q": "ours"}  # and nothing was added
    with pytest.raises(ConflictError, match="changed 1 leaf differently"):
        begun.merges.resume(replan=True)
    commit = begun.merges.resume(resolve="ours")
    assert commit.parents[0] == moved.digest
    np.testing.assert_array_equal(begun.restore()["q"], W + 9)
    np.testing.assert_array_equal(begun.restore()["p"]["a"], W + 3)
    assert begun.restore()["n"] == 5  # which is no conflict any more


def test_a_branch_that_is_gone(begun):
    begun.switch("side")
    begun.delete_branch("main")
    with pytest.raises(ConflictError, match="'main' has moved and is gone"):
        begun.merges.resume("main", resolve="ours")
    begun.merges.abort("main")


def test_a_process_that_died_after_the_branch_moved(begun, monkeypatch):
    monkeypatch.setattr(begun.kept_merges, "drop", lambda target: False)
    commit = begun.merges.resume(resolve="ours")
    again = Repository.open(begun.url)
    assert again.merges.get() is not None
    assert again.merges.resume() == commit
    assert again.merges.get() is None


def test_two_that_go_on_with_one_merge(begun):
    other = Repository.open(begun.url)
    seen = other.kept_merges.get("refs/heads/main")
    assert seen is not None
    begun.merges.decide(resolve={"p/a": "ours"})
    with pytest.raises(MergeError, match="changed by somebody else"):
        other.kept_merges.replace(seen, seen)
    with pytest.raises(MergeError, match="under way"):
        other.kept_merges.start(seen)


def test_gc_keeps_what_a_merge_is_of(begun):
    begun.switch("main", detach=True)
    theirs = begun.resolve("side")
    for name in ("side", "main"):
        begun.delete_branch(name)
    for key in begun.store.keys("log/"):
        begun.store.delete([key])
    begun.refs.set_head(vcjax.history.Head("elsewhere"))
    plan = begun.gc(unsafe=True)
    assert plan.commits == ()
    fresh = Repository.open(begun.url)
    np.testing.assert_array_equal(fresh.restore(theirs)["p"]["c"], W + 3)
    state = fresh.kept_merges.get("refs/heads/main")
    assert state is not None
    fresh.branch("main", state.ours, force=True)
    fresh.merges.resume("main", resolve="theirs")
    assert fresh.fsck().ok


def test_prune_spares_what_a_merge_is_of(begun):
    theirs = begun.resolve("side")
    begun.commit(OURS, "further", branch="side")
    assert begun.prune([theirs], "test").spared == (theirs.digest,)
    begun.merges.abort()
    assert begun.prune([theirs], "test").commits == (theirs.digest,)


def test_a_damaged_state_is_found_and_can_be_dropped(begun):
    key = "merges/refs/heads/main"
    data = begun.store.read(key)
    assert data.endswith(b"}\n")
    assert json.loads(data)["names"] == ["main", "side"]
    begun.store.write(key, data.replace(b'"side"', b'"size"', 1))
    with pytest.raises(CorruptionError, match="merges/refs/heads/main is damaged"):
        begun.merges.resume()
    assert [problem.object for problem in begun.fsck().problems] == ["merges/refs/heads/main"]
    begun.merges.abort()
    assert begun.fsck().ok


KILLED = """
import os, sys, vcjax
from vcjax.threeway import settle as merging
repo = vcjax.Repository.open(sys.argv[1])
settle = merging.settle
def settled(*args):
    outcome = settle(*args)
    print("settled", flush=True)
    sys.stdin.read()
    return outcome
merging.settle = settled
repo.merges.resume(resolve="theirs", method="average")
"""


def test_killed_between_deciding_and_publishing(begun, processes):
    before = begun.branches
    process = processes.python(KILLED, begun.url)
    assert process.read_line() == "settled"
    process.kill()
    process.finish(-signal.SIGKILL)
    again = Repository.open(begun.url)
    assert again.branches == before
    progress = again.merges.get()
    assert progress is not None
    assert list(progress.left) == []
    commit = again.merges.resume()
    assert commit.provenance is not None
    assert commit.provenance["rules"] == [["**", "theirs"], ["**", "method"]]
    assert again.fsck().ok
