"""Commits in the background: what the caller may do meanwhile, and what happens to errors."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vcjax

from ..subprocesses import PATIENCE

pytestmark = pytest.mark.smoke

MEGABYTES = 8


def tree_of(value: float) -> dict:
    numpy_leaf = np.full((MEGABYTES, 256, 1024), value, np.float32)
    return {"jax": jnp.full((MEGABYTES, 256, 1024), value, jnp.float32), "numpy": numpy_leaf}


@pytest.fixture
def held_store(tmp_path, monkeypatch):
    """A repository whose background thread waits for `release` before it stores anything."""
    repo = vcjax.Repository.init(tmp_path)
    release = threading.Event()
    write = repo.objects.write

    def held(leaves, known):
        assert release.wait(PATIENCE)
        return write(leaves, known)

    monkeypatch.setattr(repo.objects, "write", held)
    return repo, release


def test_donated_and_mutated_arrays_are_committed_as_they_were(held_store):
    repo, release = held_store
    tree = tree_of(1)
    future = repo.commit_async(tree, "as it was")
    tree["numpy"][:] = 2
    donated = jax.jit(lambda x: x * 0 + 3, donate_argnums=0)(tree["jax"])
    donated.block_until_ready()
    assert repo.is_committing
    release.set()
    commit = future.result()
    restored = repo.restore(commit)
    np.testing.assert_array_equal(restored["numpy"], 1)
    np.testing.assert_array_equal(restored["jax"], 1)


def test_a_commit_waits_for_the_one_before(held_store, monkeypatch):
    repo, release = held_store
    first = repo.commit_async({"w": np.ones(3)}, "first")
    result = first.result

    def let_go(*arguments):
        release.set()
        return result(*arguments)

    monkeypatch.setattr(first, "result", let_go)  # what a commit waits with
    second = repo.commit({"w": np.zeros(3)}, "second")
    assert first.done()
    assert second.parents == (first.result().digest,)


def test_threads_that_wait_together_all_wait(held_store, waiting):
    repo, release = held_store
    commit = repo.commit_async({"w": np.ones(3)}, "first")
    with ThreadPoolExecutor(3) as executor:
        waiters = [executor.submit(repo.wait_until_finished) for _ in range(3)]
        for _ in waiters:
            assert waiting.acquire(timeout=PATIENCE)
        assert not any(waiter.done() for waiter in waiters)
        assert repo.is_committing
        release.set()
        assert [waiter.result(PATIENCE) for waiter in waiters] == [None] * 3
    assert commit.done()


def test_errors_surface_once_at_the_next_call(tmp_path, monkeypatch):
    repo = vcjax.Repository.init(tmp_path)
    repo.commit({"w": np.ones(3)}, "good")

    def broken(leaves, known):
        raise vcjax.errors.StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(repo.objects, "write", broken)
        future = repo.commit_async({"w": np.zeros(3)}, "bad")
        with pytest.raises(vcjax.errors.StorageError, match="full"):
            repo.wait_until_finished()
        repo.wait_until_finished()
        with pytest.raises(vcjax.errors.StorageError, match="full"):
            future.result()
        repo.commit_async({"w": np.zeros(3)}, "bad again")
        with pytest.raises(vcjax.errors.StorageError, match="full"):
            repo.commit({"w": np.full(3, 2.0)}, "raises the error of the one before")
    assert [commit.message for commit in repo.log()] == ["good"]
    repo.commit({"w": np.full(3, 2.0)}, "goes on")
    assert [commit.message for commit in repo.log()] == ["goes on", "good"]


def test_bad_trees_are_refused_at_once(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    with pytest.raises(vcjax.errors.UnsupportedLeafError, match="'f'"):
        repo.commit_async({"f": print})


def test_copies_are_bounded(held_store):
    repo, release = held_store
    repo.in_flight_bytes = 1 << 20
    release.set()
    future = repo.commit_async({"w": np.ones((MEGABYTES, 1 << 18), np.float32)}, "too large")
    assert future.done()
    release.clear()
    small = repo.commit_async({"w": np.ones(3)}, "small")
    assert not small.done()
    release.set()
    assert small.result().parents == (future.result().digest,)


def test_branches_commit_side_by_side(held_store):
    repo, release = held_store
    release.set()
    repo.commit({"w": np.zeros(3)}, "base")
    repo.branch("other")
    release.clear()
    one = repo.commit_async({"w": np.ones(3)}, "one")
    two = repo.commit_async({"w": np.full(3, 2.0)}, "two", branch="other")
    assert not one.done()
    assert not two.done()
    release.set()
    repo.wait_until_finished()
    assert repo.branches == {"main": one.result().digest, "other": two.result().digest}


def test_the_process_waits_for_its_commits_at_exit(tmp_path, processes):
    program = f"""
        import numpy as np, vcjax
        repo = vcjax.Repository.init({str(tmp_path)!r})
        repo.commit_async({{"w": np.ones((64, 1 << 16), np.float32)}}, "last words")
    """
    processes.python(program).finish()
    assert next(vcjax.Repository.open(tmp_path).log()).message == "last words"


def test_a_failed_last_commit_is_not_silent(tmp_path, processes):
    program = f"""
        import numpy as np, vcjax
        repo = vcjax.Repository.init({str(tmp_path)!r})
        def broken(leaves, known):
            raise vcjax.errors.StorageError("the disk is full")
        repo.objects.write = broken
        repo.commit_async({{"w": np.ones(3)}}, "lost")
    """
    _, err = processes.python(program).finish()
    assert "background commit failed" in err
    assert "disk is full" in err


def test_manager_saves_in_the_background(tmp_path, monkeypatch):
    options = vcjax.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
    with vcjax.CheckpointManager(tmp_path, options) as manager:
        for step in range(4):
            assert manager.save(step, {"w": np.full(1000, step)}, metrics={"loss": 1.0})
            assert manager.latest_step() == step
        np.testing.assert_array_equal(manager.restore()["w"], 3)

        def broken(leaves, known):
            raise vcjax.errors.StorageError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(manager.repo.objects, "write", broken)
            manager.save(4, {"w": np.full(1000, 4)})
            with pytest.raises(vcjax.errors.StorageError, match="full"):
                manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]
        assert manager.save(4, {"w": np.full(1000, 4)})
    assert vcjax.CheckpointManager(tmp_path).all_steps() == [3, 4]
