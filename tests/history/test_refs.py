"""Refs that are lost, a detached HEAD that several writers move, and undoing."""

import shlex
import time

import numpy as np
import pytest

import vcjax
from vcjax import Repository
from vcjax.errors import ConflictError, CorruptionError, RefError, RevisionError
from vcjax.history import Head

pytestmark = pytest.mark.smoke

WRITER = """
import sys
import numpy as np
import vcjax
from vcjax import Repository

url, name = sys.argv[1:]
repo = Repository.open(url)
tree = repo.restore()
for i in range(1, 9):
    tree[name] = np.full(4, i)
    print(repo.commit(tree, f"{name} {i}").digest, flush=True)
"""


@pytest.fixture
def repo(tmp_path):
    return Repository.init(tmp_path / ".vcjax")


@pytest.fixture
def detached(repo):
    repo.commit({"a": np.zeros(4), "b": np.zeros(4)}, "start")
    repo.switch("main", detach=True)
    return repo


def test_processes_on_a_detached_head_lose_nothing(detached, processes):
    start = detached.resolve("HEAD")
    writers = [processes.python(WRITER, detached.url, name) for name in "ab"]
    made = [line for writer in writers for line in writer.finish()[0].split()]
    assert len(made) == 16
    fresh = Repository.open(detached.url)
    assert {commit.digest for commit in fresh.log()} == {*made, start.digest}
    np.testing.assert_equal(fresh.restore(), {"a": np.full(4, 8), "b": np.full(4, 8)})
    assert len(fresh.refs.log("HEAD")) == 17
    assert fresh.refs.gaps("HEAD") == []
    assert fresh.fsck().ok


def test_conflicts_on_a_detached_head(detached):
    other = Repository.open(detached.url)
    for one in (detached, other):
        one.restore()
    other.commit({"a": np.ones(4), "b": np.zeros(4)}, "theirs")
    with pytest.raises(ConflictError, match="'HEAD' has moved"):
        detached.commit({"a": np.full(4, 2.0), "b": np.zeros(4)}, "ours")
    merged = detached.commit({"a": np.zeros(4), "b": np.ones(4)}, "another leaf")
    np.testing.assert_equal(detached.restore(merged)["a"], np.ones(4))


def test_a_switch_wins_over_a_commit_to_the_detached_head(detached, monkeypatch):
    """Nothing would point to the commit: it is refused, not acknowledged and lost."""
    write = detached.history.write
    other = Repository.open(detached.url)

    def switched(*parts):
        other.switch("main")
        return write(*parts)

    monkeypatch.setattr(detached.history, "write", switched)
    with pytest.raises(RefError, match="meanwhile"):
        detached.commit({"a": np.ones(4)}, "late")
    assert detached.head == Head("main")
    assert detached.resolve("HEAD").message == "start"
    assert detached.fsck().ok


def test_fast_forward_of_a_detached_head(detached):
    ahead = detached.commit({"a": np.ones(4)}, "ahead", branch="side")
    ours = detached.resolve("HEAD")
    other = Repository.open(detached.url)
    assert other.merge("side") == ahead
    assert detached.head == Head(None, ahead.digest)
    assert detached.refs.log("HEAD")[0].reason.startswith("merge: fast-forward")
    with pytest.raises(ConflictError, match="meanwhile"):
        detached.merges._fast_forward("HEAD", ours, ahead)


def test_log_of_a_detached_head(detached):
    start = detached.resolve("HEAD")
    first = detached.commit({"a": np.ones(4)}, "first")
    second = detached.commit({"a": np.full(4, 2.0)}, "second")
    assert detached.resolve("HEAD@{1}") == first
    assert detached.resolve("@{2}") == start
    detached.switch("main")
    assert detached.refs.get("HEAD") is None
    with pytest.raises(RevisionError, match="1 state"):
        detached.resolve("HEAD@{1}")  # of main
    detached.switch("main", detach=True)
    assert detached.resolve("HEAD@{1}") == second
    assert detached.refs.gaps("HEAD") == []
    assert [state.sequence for state in detached.refs.log("HEAD")] == [5, 3, 2, 1]
    assert detached.fsck().ok


def test_gc_keeps_what_a_detached_head_has_reached(detached, monkeypatch):
    loose = detached.commit({"a": np.arange(200_000.0)}, "loose")
    detached.switch("main")
    detached.gc(unsafe=True)
    np.testing.assert_equal(detached.restore(loose)["a"], np.arange(200_000.0))
    later = time.time() + 100 * 24 * 3600
    monkeypatch.setattr(type(detached.store), "now", lambda store: later)
    assert loose.digest in detached.gc(unsafe=True).commits
    assert detached.fsck().ok


def test_head_is_written_anew_when_it_was_lost(detached):
    first = detached.commit({"a": np.ones(4)}, "first")
    for content in (None, b"{"):
        detached.store.compare_and_set("HEAD", content, detached.store.read_versioned("HEAD"))
        with pytest.raises(CorruptionError, match="HEAD"):
            detached.resolve("HEAD")
        detached.switch("main")
        assert detached.fsck().ok
        detached.switch(first.digest, detach=True)
        assert detached.fsck().ok


def lose(repo, name):
    repo.store.delete([name])


def test_a_lost_branch(repo, cli_in):
    first = repo.commit({"a": 1}, "first")
    second = repo.commit({"a": 2}, "second")
    lose(repo, "refs/heads/main")
    problems = {problem.object: problem.message for problem in repo.fsck().problems}
    assert set(problems) == {"refs/heads/main", "HEAD"}
    assert problems["refs/heads/main"].endswith(f"log ends at state 2, commit {second.digest}")
    for refused in (
        lambda: repo.commit({"a": 3}, "third"),
        lambda: Repository.open(repo.url).commit({"a": 3}, "third"),
        lambda: repo.branch("main", second),
        lambda: repo.resolve("HEAD"),
        repo.undo,
    ):
        with pytest.raises(CorruptionError, match="refs/heads/main is missing") as caught:
            refused()
        assert f"`vcjax branch --force main {second.digest}`" in str(caught.value.hint)
    assert repo.store.read("refs/heads/main") is None
    code, _, err = cli_in(repo, "branch", "--force", "main", second.digest)
    assert code == 0, err
    assert repo.fsck().ok
    assert [state.commit for state in repo.refs.log("refs/heads/main")] == [
        second.digest,
        second.digest,
        first.digest,
    ]
    assert repo.commit({"a": 3}, "third").parents == (second.digest,)


def test_a_lost_tag_and_one_that_was_deleted(repo):
    one, two = repo.commit({"a": 1}, "one"), repo.commit({"a": 2}, "two")
    for name in ("kept", "gone"):
        repo.tag(name, one)
        repo.tag(name, two, force=True)
    repo.delete_tag("gone")
    lose(repo, "refs/tags/kept")
    assert [problem.object for problem in repo.fsck().problems] == ["refs/tags/kept"]
    with pytest.raises(CorruptionError, match="refs/tags/kept is missing") as caught:
        repo.tag("kept", two)
    assert f"`vcjax tag --force kept {two.digest}`" in str(caught.value.hint)
    repo.tag("gone", two)
    repo.tag("kept", two, force=True)
    assert repo.fsck().ok


def test_the_loss_of_a_first_state(repo):
    """It can be seen, since a state is logged when it is set; not if the log is gone as well."""
    first = repo.commit({"a": 1}, "first")
    lose(repo, "refs/heads/main")
    assert {p.object for p in repo.fsck().problems} == {"refs/heads/main", "HEAD"}
    with pytest.raises(CorruptionError, match="refs/heads/main is missing"):
        repo.commit({"a": 2}, "second")
    lose(repo, "log/refs/heads/main@000000000001.json")
    assert repo.fsck().ok
    assert repo.history.commit(first.digest) == first


def test_undo_and_undo_again(repo):
    digests = [repo.commit({"w": i}, str(i)).digest for i in range(4)]
    for expected in (2, 1):
        assert repo.undo().commit == digests[expected]
    again = repo.commit({"w": 9}, "9")
    assert again.parents == (digests[1],)
    assert repo.resolve("main@{1}").digest == digests[1]
    assert repo.undo().commit == digests[1]
    assert repo.undo().commit == digests[0]
    assert repo.undo() is None
    assert repo.branches == {}
    with pytest.raises(RefError):
        repo.undo()
    repo.commit({"w": 5}, "a new beginning")
    assert repo.undo() is None
    assert repo.fsck().ok


def test_a_lost_log_entry_undoes_nothing(repo):
    for i in range(3):
        repo.commit({"w": i}, str(i))
    repo.store.delete(["log/refs/heads/main@000000000002.json"])
    with pytest.raises(RefError, match="lacks its state 2"):
        repo.undo()
    assert repo.restore() == {"w": 2}
    assert [p.message for p in repo.fsck().problems] == ["its state 2 is missing"]


def test_former_states_are_kept_by_when_they_were_replaced(repo):
    """A state that was set long ago and replaced today can still be undone after `gc`."""
    repo.commit({"w": 1}, "old")
    state = repo.refs.get("refs/heads/main")
    old = vcjax.Ref(state.name, state.commit, 1, state.time - 1e8, "commit: old", None, "00")
    repo.store.write_many([(state.name, old.encode()), (state.log_key, old.encode())])
    repo.commit({"w": 2}, "new")
    repo.branch("elsewhere")
    repo.refs.undo("refs/heads/elsewhere")
    repo.gc(unsafe=True)
    assert repo.undo().commit == old.commit
    assert repo.restore() == {"w": 1}


def test_undo_to_the_beginning_says_how_to_redo(repo, cli_in):
    name = "it's&main"
    repo.switch(name, create=True)
    first = repo.commit({"a": 1}, "first")
    code, out, _ = cli_in(repo, "undo")
    assert code == 0
    redo = f"`vcjax branch --force {shlex.quote(name)} {first.digest}`"
    assert out.splitlines() == [f"branch {name} has no commit any more", f"{redo} would redo it"]
    code, _, err = cli_in(repo, "undo")
    assert code == 1
    assert f'branch "{name}" has no commit' in err
    assert redo in err
    assert cli_in(repo, *shlex.split(redo.strip("`"))[1:])[0] == 0
    assert repo.resolve("HEAD") == first


def test_undo_on_a_branch_that_never_had_a_commit(repo):
    with pytest.raises(RefError, match="branch 'main' has no commit") as caught:
        repo.undo()
    assert "repo.commit(" in str(caught.value.hint)
    assert "vcjax commit" in str(caught.value.shell_hint)


def test_reflog_of_a_detached_head(detached, cli_in):
    first = detached.commit({"a": np.ones(4)}, "first")
    code, out, _ = cli_in(detached, "log", "--reflog")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        [first.digest[:8], "HEAD@{0}"],
        [first.parents[0][:8], "HEAD@{1}"],
    ]
    assert out.splitlines()[0].endswith(" commit: first")


@pytest.fixture
def changed_twice(repo):
    """A leaf stored as a difference to a difference; its object and that of its base."""
    tree = {"w": np.random.default_rng(0).normal(size=(40, 250_000)).astype(np.float32)}
    keys = []
    for i in range(3):
        tree["w"][i * 12] += 1
        digest = repo.manifest(repo.commit(tree, f"step {i}")).leaves["w"].digest
        keys.append(f"leaves/{digest[:2]}/{digest}")
    found = repo.store.keys("leaves/")
    inner = [f"{key}/difference/zarr.json" for key in keys[1:]]
    assert set(inner) <= set(found)
    return repo, inner


def test_fsck_reads_the_metadata_within_differences(changed_twice):
    repo, inner = changed_twice
    assert repo.fsck().ok
    whole = [repo.store.read(key) for key in inner]
    repo.store.delete(inner[:1])
    repo.store.write(inner[1], whole[1].replace(b"crc32c", b"crc32d"))
    assert {str(problem) for problem in repo.fsck().problems} == {
        f"{inner[0]}: is missing",
        f"{inner[1]}: differs from what the group says of the array",
    }
    for key, value in zip(inner, whole, strict=True):
        repo.store.write(key, value)
    assert repo.fsck().ok


def test_fsck_reads_the_metadata_of_bases(changed_twice):
    """Also of those that no commit refers to themselves."""
    repo, inner = changed_twice
    repo.prune(["HEAD~1", "HEAD~2"], "thinned out")
    assert repo.fsck().ok
    repo.store.delete(inner[:1])
    assert [str(problem) for problem in repo.fsck().problems] == [f"{inner[0]}: is missing"]
