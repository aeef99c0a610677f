"""Refs that were copied, exchanged or put back, and logs that somebody has changed."""

import re
import shlex
import shutil

import numpy as np
import pytest

import vcjax
from vcjax.errors import CorruptionError
from vcjax.history.reflog import gaps

MAIN = "refs/heads/main"


def log_key(number, name=MAIN):
    return f"log/{name}@{number:012d}.json"


@pytest.fixture
def repo(tmp_path):
    repo = vcjax.Repository.init(tmp_path / "repo")
    for step in range(5):
        repo.commit({"w": np.full(300, step)}, f"{step}")
    repo.branch("side", "HEAD~2")
    repo.commit({"w": 77}, "side", branch="side")
    return repo


def copy(repo, source, target):
    root = repo.store.location.folder
    shutil.copy(root / source, root / target)


def put_back(number):
    return lambda repo: copy(repo, log_key(number), MAIN)


def exchange_entries(repo):
    root = repo.store.location.folder
    copy(repo, log_key(4), "kept")
    copy(repo, log_key(5), log_key(4))
    (root / "kept").rename(root / log_key(5))


FAULTS = {
    "put back by one": put_back(4),
    "put back by many": put_back(1),
    "another's record": lambda repo: copy(repo, "refs/heads/side", MAIN),
    "the last entry deleted": lambda repo: repo.store.delete([log_key(4)]),
    "entries exchanged": exchange_entries,
    "another's entry": lambda repo: copy(repo, log_key(1, "refs/heads/side"), log_key(5)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_found_by_fsck_and_by_the_next_writer(repo, cli_in, fault):
    digests = [commit.digest for commit in repo.log("main")]
    FAULTS[fault](repo)
    fresh = vcjax.Repository.open(repo.url)
    assert any(MAIN in problem.object for problem in fresh.fsck().problems)
    before = {key: fresh.store.read(key) for key in fresh.store.keys("refs/")}
    with pytest.raises(CorruptionError) as caught:
        fresh.commit({"w": 9}, "next")
    assert {key: fresh.store.read(key) for key in fresh.store.keys("refs/")} == before
    if "entr" in fault and "deleted" not in fault:
        return  # which of the log's entries is right is for the user to say
    [command, *_] = re.findall("`vcjax ([^`]+)`", str(caught.value.hint))
    code, _, err = cli_in(repo, *shlex.split(command))
    assert code == 0, err
    again = vcjax.Repository.open(repo.url)
    assert again.resolve("main").digest == digests[0]
    again.gc(unsafe=True)
    assert [again.restore(digest)["w"][0] for digest in digests] == [4, 3, 2, 1, 0]
    again.commit({"w": 9}, "next")
    if fault != "the last entry deleted":
        assert again.fsck().problems == []


def test_what_only_the_log_knows_is_no_garbage(repo):
    digests = [commit.digest for commit in repo.log("main")]
    put_back(2)(repo)
    fresh = vcjax.Repository.open(repo.url)
    plan = fresh.gc(unsafe=True)
    assert plan.commits == ()
    assert fresh.restore(digests[0])["w"][0] == 4


def test_a_detached_head_that_was_put_back(repo):
    repo.switch("main", detach=True)
    *_, last = [repo.commit({"w": step}, f"detached {step}") for step in range(3)]
    copy(repo, log_key(2, "HEAD"), "HEAD")
    fresh = vcjax.Repository.open(repo.url)
    assert any(problem.object == "HEAD" for problem in fresh.fsck().problems)
    with pytest.raises(CorruptionError, match="put back") as caught:
        fresh.commit({"w": 9}, "next")
    assert f"vcjax switch --detach {last.digest[:12]}" in str(caught.value.hint)
    fresh.switch(last.digest, detach=True)
    assert fresh.fsck().problems == []
    fresh.commit({"w": 9}, "next")


def test_records_hold_their_name(repo):
    for key in [MAIN, log_key(3), "refs/heads/side"]:
        name = MAIN if "main" in key else "refs/heads/side"
        assert f'"name": "{name}"'.encode() in repo.store.read(key)


def test_every_state_is_logged_when_it_is_set(repo):
    """Or a ref that was put back by one state would look as if nobody had gone on from it."""
    assert repo.store.read(log_key(5)) == repo.store.read(MAIN)


def test_a_full_disk_after_a_ref_was_set_is_no_failure(repo, monkeypatch):
    keep = repo.refs._log.keep

    def refuse(ref):
        if ref.sequence == 6:
            raise vcjax.errors.StorageError("full")
        keep(ref)

    monkeypatch.setattr(repo.refs._log, "keep", refuse)
    commit = repo.commit({"w": 5}, "set")
    monkeypatch.undo()
    assert repo.resolve("main") == commit
    repo.commit({"w": 6}, "goes on")
    assert repo.fsck().problems == []
    assert repo.store.exists(log_key(6))


def test_gaps_of_any_size():
    assert gaps([1, 2, 5, 2**60]) == [(3, 4), (6, 2**60 - 1)]
    assert gaps([3, 1, 2]) == []
    assert gaps([]) == []


def test_fsck_looks_again_beside_a_writer(repo, monkeypatch):
    """Whatever moves while it looks: nothing is said to be wrong."""
    writer = vcjax.Repository.open(repo.url)
    read_many, steps = type(repo.store).read_many, iter(range(100, 112))

    def beside(store, keys):
        if store is repo.store and (step := next(steps, None)):
            writer.commit({"w": step}, f"{step}")
        return read_many(store, keys)

    monkeypatch.setattr(type(repo.store), "read_many", beside)
    assert repo.fsck().problems == []
    assert next(steps, None) is None
