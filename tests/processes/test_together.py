"""Several processes commit and restore one tree: two with two devices each, four with one."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import vcjax
from vcjax.hashing import tree_digests

WORKER = Path(__file__).with_name("worker.py")
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def reference():
    """What one process has for the tree that all processes have together."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return lambda seed: {
        **worker.reference(seed),
        "keys": jax.random.split(jax.random.key(seed), 8),
    }


def same(tree, expected):
    return tree_digests(tree) == tree_digests(expected)


def test_all_return_one_commit_with_the_digests_of_a_single_process(group, url, reference):
    group.call("init", url=url)
    saved = group.call("commit", url=url, shape=group.shape)
    assert len({each["digest"] for each in saved}) == 1
    repo = vcjax.Repository.open(url)
    assert repo.resolve("HEAD").digest == saved[0]["digest"]
    assert repo.resolve("step:0").message == "saved"
    expected = reference(0)
    entries = repo.manifest().leaves
    assert {path: entry.digest for path, entry in entries.items()} == tree_digests(expected)
    assert same(repo.restore(), expected)
    assert repo.fsck().ok
    # Each wrote about as much as the others, and all of them everything once.
    sizes = [each["written"] for each in saved]
    total = sum(entry.nbytes for entry in entries.values() if entry.is_object)
    packs = {entry.packed.pack for entry in entries.values() if entry.packed}
    assert total <= sum(sizes) <= total + len(packs) * MEGABYTE
    assert max(sizes) <= total / group.count + 8 * MEGABYTE
    # Saved by one process, it is the same tree, and nothing is stored again.
    alone = repo.commit(expected, "alone")
    assert alone.tree == repo.resolve("HEAD~1").tree


def test_only_chunks_that_changed_are_written(pair, url):
    pair.call("init", url=url)
    shape = pair.shape
    pair.call("commit", url=url, shape=shape)
    saved = pair.call("commit", url=url, shape=shape, change=5.0)
    assert sum(each["written"] for each in saved) == 4_000_000  # one chunk of "rows"
    again = pair.call("commit", url=url, shape=shape, change=5.0)
    assert [each["written"] for each in again] == [0] * pair.count
    repo = vcjax.Repository.open(url)
    rows = [repo.restore(revision)["rows"] for revision in ("HEAD~2", "HEAD")]
    assert rows[1][-1, 0] == 5.0
    assert (rows[0] != rows[1]).sum() == 1
    assert repo.fsck().ok
    # A difference and its base, in parts, onto other shardings.
    [first, *_] = pair.call("restore", url=url, shape=[1, 4], revision="HEAD~2")
    assert (first["wrong"], first["placed"]) == ([], True)


def test_restoring_with_other_processes_and_meshes(groups, url, reference):
    groups[2].call("init", url=url)
    groups[2].call("commit", url=url, shape=[4, 1])
    for count, shape in [(2, [4, 1]), (2, [1, 4]), (4, [4, 1]), (4, [2, 2])]:
        for each in groups[count].call("restore", url=url, shape=shape):
            assert (each["wrong"], each["placed"]) == ([], True)
    groups[4].call("commit", url=url, shape=[1, 4], seed=1)
    for each in groups[2].call("restore", url=url, shape=[2, 2], seed=1):
        assert (each["wrong"], each["placed"]) == ([], True)
    assert same(vcjax.Repository.open(url).restore(), reference(1))


@pytest.mark.parametrize("chunk", [0, 1])
def test_each_process_reads_and_checks_only_the_chunk_that_it_needs(groups, url, chunk):
    """8 MiB in two chunks, of which each of two processes needs one: the damaged one fails."""
    groups[2].call("init", url=url)
    groups[2].call("commit", url=url, shape=[4, 1])
    digest = vcjax.Repository.open(url).manifest().leaves["aligned"].digest
    path = Path(url) / "leaves" / digest[:2] / digest / "c" / str(chunk) / "0"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    groups[2].start("restore", url=url, shape=[4, 1], names=["aligned"])
    answers = groups[2].answers()
    damaged = answers.pop(chunk)
    assert damaged["error"] == "CorruptionError"
    assert damaged["path"] == "aligned"
    assert [answer["result"]["wrong"] for answer in answers] == [[]]


def test_saving_in_the_background_of_training(group, url, reference):
    """The training step's collectives and the save do not wait for each other."""
    group.call("init", url=url)
    for seed in (0, 1):
        saved = group.call("commit_async", url=url, shape=group.shape, seed=seed, steps=3)
        assert len({each["digest"] for each in saved}) == 1
    repo = vcjax.Repository.open(url)
    assert [commit.message for commit in repo.log()] == ["async", "async"]
    assert same(repo.restore("HEAD"), reference(1))
    assert same(repo.restore("HEAD~1"), reference(0))


def test_processes_that_disagree_are_told_where(group, url):
    group.call("init", url=url)
    last = str(group.count - 1)
    differ = {"*": 1, last: 2}
    for leaves, path, what in [
        ({"a": {"*": [1, 2]}, "b": {"*": [1, 2], last: [1, 3]}}, "b", "has other values"),
        ({"a": {"*": 5}, "lr": differ}, "lr", "has other values"),
        ({"a": {"*": 5}, "w": {"*": [1], last: [1, 2]}}, "w", "has a tree with other leaves"),
    ]:
        for kind, message in group.fail("commit_host", url=url, **leaves):
            assert kind == "ProcessError"
            assert f"process {last} {what} than process 0:\n  {path}" in message
    digests = group.call("commit_host", url=url, a={"*": [1, 2]}, b={"*": "text"})
    assert set(digests) == {vcjax.Repository.open(url).resolve("HEAD").digest}


def test_what_process_0_meets_is_raised_by_all(group, url):
    group.call("init", url=url)
    group.call("commit_host", url=url, a={"*": 1}, b={"*": 1})
    other = vcjax.Repository.open(url)
    other.restore()
    kept = other.commit({"a": 2, "b": 1}, "meanwhile")
    errors = group.fail("commit_host", url=url, a={"*": 3}, b={"*": 1})
    assert [kind for kind, _ in errors] == ["ConflictError"] * group.count
    assert other.resolve("HEAD").digest == kept.digest
    group.call("commit_host", url=url, a={"*": 1}, b={"*": 7})  # another leaf: rebased
    assert other.restore("main") == {"a": 2, "b": 7}


def test_what_one_process_meets_is_told_to_all(pair, url):
    pair.call("init", url=url)
    shape, last = pair.shape, pair.count - 1
    [kept, *_] = pair.call("commit", url=url, shape=shape)
    errors = pair.fail("full_disk", url=url, shape=shape, process=last, seed=1)
    kinds = [kind for kind, _ in errors]
    assert kinds == ["ProcessError"] * last + ["StorageError"]
    assert f"process {last} failed: cannot write" in errors[0][1]
    errors = pair.fail("donated", url=url, shape=shape, process=last)
    assert [kind for kind, _ in errors] == ["ProcessError"] * last + ["UnsupportedLeafError"]
    repo = vcjax.Repository.open(url)
    assert repo.resolve("HEAD").digest == kept["digest"]
    assert repo.fsck().ok
    pair.call("commit", url=url, shape=shape, seed=1)
    assert repo.fsck().ok


def test_the_repository_has_to_be_one(group, url, tmp_path):
    group.call("init", url=url)
    other = vcjax.Repository.init(tmp_path / "other")
    last = group.count - 1
    errors = group.fail("elsewhere", url=url, other=other.url, process=last)
    assert [kind for kind, _ in errors] == ["ProcessError"] * last + ["RepositoryError"]
    assert all("not the repository that process 0 has" in message for _, message in errors)


def test_opening_agreeing_and_repositories_of_their_own(group, url, tmp_path):
    assert group.call("init", url=url) == [str(Path(url))] * group.count
    assert {kind for kind, _ in group.fail("init", url=url)} == {"RepositoryExistsError"}
    group.call("init", url=url, exist_ok=True)
    for number in range(8):
        assert group.call("tell", url=url, value=number) == [[number, 0]] * group.count
    own = group.call("own", folder=str(tmp_path))
    assert own == [[process, process] for process in range(group.count)]


def test_a_process_that_does_not_come(groups, url):
    """Only one of two commits: it says so in time, and what to do."""
    group = groups[2]
    group.call("init", url=url)
    message = group.call("alone", url=url, timeout=10.0)[0]
    assert "process 1 of 2 has not come within 2 s" in message
    assert "local=True" in message


def test_arrays_of_several_processes_are_refused_where_one_cannot_read_them(groups):
    for message in groups[2].call("flatten_spanning"):
        assert "'w' is a jax.Array with shards on other processes" in message
    assert np.array_equal(groups[2].call("probe")[1], [1, 2, 4])
