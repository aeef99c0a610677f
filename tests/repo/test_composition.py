"""`Repository` is composed: a `Reader` alone, handles, what a commit is based on, one request."""

import inspect

import numpy as np
import pytest

import vcjax
from vcjax import Repository, merging
from vcjax.errors import ConflictError, MergeError, RefError, RevisionError
from vcjax.history import MergeRequest
from vcjax.repo import Reader


def numbers(value):
    return {"a": np.full(3, value, np.float32), "b": np.zeros(2, np.float32)}


def test_a_reader_reads_and_cannot_write(repo):
    first = repo.commit(numbers(1), "one")
    second = repo.commit(numbers(2), "two")
    reader = Reader.open(repo.url)
    assert list(reader.log()) == [second, first]
    assert reader.restore("HEAD~1")["a"].tolist() == [1, 1, 1]
    assert reader.diff().to_dict() == repo.diff().to_dict()
    assert reader.fsck().ok
    assert "Reader(" in repr(reader)
    writing = ("commit", "commit_async", "merge", "branch", "tag", "switch", "undo", "gc", "prune")
    assert not [name for name in writing if hasattr(reader, name)]


def test_two_classes_hold_the_public_methods():
    assert Repository.__mro__ == (Repository, Reader, object)
    assert "restore" not in vars(Repository)  # defined once
    own = [name for name in vars(Repository) if not name.startswith("_")]
    assert len(own) <= 22
    assert isinstance(vars(Repository)["commit"], type(lambda: None))


def test_onto_says_what_a_tree_changes(repo):
    start = repo.commit(numbers(1), "start")
    theirs = repo.commit({**numbers(1), "b": np.ones(2, np.float32)}, "theirs")
    commit = repo.commit(numbers(3), "made from start", onto=start)
    assert commit.parents == (theirs.digest,)
    assert repo.restore(commit)["a"].tolist() == [3, 3, 3]
    assert repo.restore(commit)["b"].tolist() == [1, 1]  # theirs, not undone
    with pytest.raises(ConflictError) as raised:
        repo.commit(numbers(4), onto="HEAD~2")
    assert raised.value.paths == ("a",)
    later = repo.commit_async({**numbers(3), "b": np.full(2, 9.0)}, onto="HEAD").result()
    assert later.parents == (commit.digest,)


def test_a_new_branch_starts_at_onto(repo):
    start = repo.commit(numbers(1), "start")
    repo.commit(numbers(2), "further")
    side = repo.commit(numbers(5), "side", branch="side", onto="HEAD~1")
    assert side.parents == (start.digest,)


def test_onto_must_lead_to_the_branch(repo):
    repo.commit(numbers(1), "start")
    repo.branch("side")
    aside = repo.commit(numbers(2), "aside", branch="side")
    with pytest.raises(RefError, match="does not lead to 'main'") as raised:
        repo.commit(numbers(3), onto=aside)
    assert "branch=" in str(raised.value.hint)
    with pytest.raises(RevisionError):
        repo.commit(numbers(3), onto="nothing")
    assert repo.resolve("main").message == "start"


def test_one_name_is_merged_into_head_and_is_theirs(repo):
    repo.commit(numbers(1), "start")
    repo.branch("side")
    repo.commit(numbers(2), "side", branch="side")
    repo.commit({**numbers(1), "b": np.ones(2, np.float32)}, "main")
    commit = repo.merge("side")
    assert commit.message == "Merge side into HEAD"
    assert commit.provenance["names"] == ["HEAD", "side"]
    assert "ours" not in inspect.signature(Repository.merge).parameters
    with pytest.raises(MergeError, match="nothing to merge"):
        repo.merge()


def test_what_is_no_decision_is_refused(repo):
    repo.commit(numbers(1), "start")
    repo.branch("side")
    for call in (repo.merge, repo.merges.start):
        with pytest.raises(TypeError, match="metod"):
            call("side", metod="average")
    with pytest.raises(TypeError, match="mesage"):
        repo.commit_async(numbers(2), mesage="typo")
    with pytest.raises(TypeError, match="weight"):
        repo.merge_models(["main"], "average", weight=[1])


@pytest.mark.parametrize("method", ["avrage", "Stack", "merge", "chain"])
def test_what_is_no_method_is_refused_although_none_is_needed(repo, method):
    repo.commit(numbers(1), "start")
    repo.branch("side")
    repo.commit(numbers(2), "side", branch="side")
    repo.commit({**numbers(1), "b": np.ones(2, np.float32)}, "main")
    with pytest.raises(MergeError):
        repo.merge("side", method=method)
    assert repo.resolve("HEAD").message == "main"


def test_what_was_asked_is_recorded_and_replayed(repo):
    repo.commit(numbers(1), "start")
    repo.branch("side")
    repo.commit(numbers(2), "side", branch="side")
    repo.commit(numbers(4), "main")
    asked = {"weights": [3.0, 1.0], "method": merging.linear(), "message": "both"}
    with pytest.raises(ConflictError):
        repo.merge("side", keep_conflicts=True)
    kept = repo.merges.decide(**asked)
    assert repo.kept_merges.get("refs/heads/main") == kept
    commit = repo.merges.resume()
    again = MergeRequest.of_provenance(commit.provenance)
    names = ("ours", "theirs", "names", "rules", "method", "weights", "key")
    assert [getattr(again, name) for name in names] == [getattr(kept, name) for name in names]
    assert repo.restore(commit)["a"].tolist() == [3.5, 3.5, 3.5]
    assert repo.merges.rerun(commit).is_same


CLEAN = """
import sys, vcjax
repo = vcjax.Repository.open(sys.argv[1])
for name, method in (("clean", None), ("named", "average"), ("forward", None)):
    repo.switch(name)
    repo.merge("side", method=method)
print(sorted({"jax", "flax", "optax", "orbax"} & set(sys.modules)))
"""


def test_what_needs_no_arithmetic_loads_no_jax(repo, processes):
    repo.commit({"a": 1, "b": 1}, "base")
    for name in ("side", "clean", "named", "forward"):
        repo.branch(name)
    repo.commit({"a": 1, "b": 2}, "theirs", branch="side")
    for name in ("clean", "named"):
        repo.commit({"a": 2, "b": 1}, "ours", branch=name)
    assert processes.python(CLEAN, repo.url).finish()[0] == "[]\n"
    fresh = vcjax.Repository.open(repo.url)
    assert fresh.branches["forward"] == fresh.branches["side"]
    assert fresh.restore("clean") == fresh.restore("named") == {"a": 2, "b": 2}
    assert fresh.merges.rerun("named").is_same
