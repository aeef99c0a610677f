"""`CheckpointManager`: ranks, several managers, numbers of steps, pruning, failures."""

import itertools
import math
import secrets
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

import vcjax
from vcjax.errors import PrunedError, StepExistsError, StorageError, VcjaxError
from vcjax.orbax.manager.policies import ranked

from ..leaf_kinds import assert_restores, tree

pytestmark = pytest.mark.smoke


def Options(enable_async_checkpointing=False, **options):
    return vcjax.CheckpointManagerOptions(
        enable_async_checkpointing=enable_async_checkpointing, **options
    )


def Manager(url, options=None):
    return vcjax.CheckpointManager(url, options or Options())


def loss(metrics):
    return metrics["loss"]


def no_number(metrics) -> Any:
    return None


def place():
    return f"memory://{secrets.token_hex(8)}"


# -- ranks ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("values", list(itertools.permutations([0.5, math.nan, 0.9, 0.1])))
def test_nan_ranks_last(values, mode):
    options = Options(max_to_keep=2, best_fn=loss, best_mode=mode)
    with Manager(place(), options) as manager:
        for step, value in enumerate(values):
            assert manager.save(step, {"w": np.full(2_000, step)}, metrics={"loss": value})
        best = values.index(0.1 if mode == "min" else 0.9)
        assert manager.best_step() == best
        numbers = [value for value in values if not math.isnan(value)]
        order = sorted(numbers, reverse=mode == "max")
        expected = {values.index(order[0]), values.index(order[1]), 3}
        assert set(manager.all_steps()) == expected
        for step in manager.all_steps():
            assert manager.restore(step)["w"][0] == step
        steps = list(manager._checkpoints)
        assert ranked(steps, options.best_mode == "min")[0].step == best
        again = Manager(manager.directory, options)
        assert again.all_steps() == manager.all_steps()
        assert again.best_step() == best


def test_nan_is_ranked_and_so_does_not_stay_for_ever():
    options = Options(max_to_keep=1, best_fn=loss, best_mode="min")
    with Manager(place(), options) as manager:
        for step in range(4):
            manager.save(step, {"w": step}, metrics={"loss": math.nan})
        assert manager.all_steps() == [3]
        assert manager.best_step() == 3
        manager.save(4, {"w": 4}, metrics={"loss": 1.0})
        assert manager.best_step() == 4


def test_a_best_fn_that_fails_commits_nothing():
    with Manager(place(), Options(max_to_keep=2, best_fn=loss)) as manager:
        manager.save(0, tree(0), metrics={"loss": 1.0})
        with pytest.raises(VcjaxError, match=r"step 1 .*'accuracy': 0.5.*KeyError") as caught:
            manager.save(1, tree(1), metrics={"accuracy": 0.5})
        assert isinstance(caught.value.__cause__, KeyError)
        assert manager.all_steps() == [0]
        assert len(list(manager.repo.log())) == 1
        assert manager.save(1, tree(1))
        assert manager.save(2, tree(2), metrics={"loss": 2.0})
        assert manager.save(3, tree(3), metrics={"loss": 3.0})
        assert manager.all_steps() == [1, 2, 3]  # step 1 has no rank, and stays
        assert manager.best_step() == 3


def test_a_best_fn_without_a_number_commits_nothing():
    with Manager(place(), Options(best_fn=no_number)) as manager:
        with pytest.raises(VcjaxError, match="step 0"):
            manager.save(0, tree(0), metrics={"loss": 1.0})
        assert not manager.all_steps()


def test_a_stored_step_that_cannot_be_rated_has_no_rank(monkeypatch):
    url = place()
    with Manager(url) as manager:
        manager.save(0, tree(0), metrics={"accuracy": 0.5})
        manager.save(1, tree(1), metrics={"loss": 1.0})
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    with Manager(url, Options(max_to_keep=1, best_fn=loss)) as manager:
        manager.reload()
        assert len(warnings) == 1
        assert "step 0" in warnings[0]
        assert manager.best_step() == 1
        manager.save(2, tree(2), metrics={"loss": 2.0})
        assert manager.all_steps() == [0, 2]
        assert len(warnings) == 1


# -- several managers ----------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_two_managers_take_turns(url, background):
    options = Options(enable_async_checkpointing=background)
    a, b = Manager(url, options), Manager(url, options)
    a.save(0, tree(0))
    a.wait_until_finished()
    b.save(1, tree(1))
    b.wait_until_finished()
    a.reload()
    assert a.all_steps() == [0, 1]
    a.save(2, tree(2))
    a.wait_until_finished()
    b.save(3, tree(3))  # without a reload
    b.wait_until_finished()
    a.reload()
    assert [c.step for c in a.repo.log()] == [3, 2, 1, 0]
    assert all(len(c.parents) <= 1 for c in a.repo.log())
    for step in range(4):
        assert_restores(a.restore(step), step)
        assert_restores(b.restore(step), step)


def test_a_step_of_another_manager_exists(url):
    a, b = Manager(url), Manager(url)
    a.save(0, tree(0))
    with pytest.raises(StepExistsError):
        b.save(0, tree(1))
    assert b.all_steps() == [0]
    assert b.save(0, tree(1), overwrite=True)
    assert_restores(a.restore(0), 0)
    a.reload()
    assert_restores(a.restore(0), 1)


def test_trees_of_two_managers_are_not_merged(url):
    a, b = Manager(url), Manager(url)
    a.save(0, {"p": 0, "q": 0})
    b.reload()
    b.save(1, {"p": 1, "q": 0})
    a.save(2, {"p": 0, "q": 2})
    assert a.restore(2) == {"p": 0, "q": 2}


def test_a_manager_that_was_overtaken_notices(url, monkeypatch):
    """Somebody commits after a save has looked at the tip, and before its commit."""
    a, b = Manager(url), Manager(url)
    a.save(0, {"p": 0, "q": 0})
    b.reload()
    take_news = b._keeper.take_news

    def overtaken(*arguments):
        news = take_news(*arguments)
        a.save(1, {"p": 1, "q": 0})
        return news

    monkeypatch.setattr(b._keeper, "take_news", overtaken)
    assert b.save(2, {"p": 0, "q": 0, "r": 2})
    assert b.all_steps() == [0, 1, 2]


def test_undo_takes_a_step_back(repo):
    manager = Manager(repo.url)
    manager.save(0, tree(0))
    manager.save(1, tree(1))
    repo.undo()
    manager.reload()
    assert manager.save(1, tree(7))
    assert [c.step for c in manager.repo.log()] == [1, 0]
    assert_restores(manager.restore(1), 7)


def test_refresh_forgets_what_a_commit_would_be_based_on(url):
    a, b = vcjax.Repository.init(url), vcjax.Repository.open(url)
    a.commit({"w": 0})
    b.commit({"w": 1})
    with pytest.raises(vcjax.ConflictError):
        a.commit({"w": 2})
    a.refresh()
    a.commit({"w": 2})
    assert [c.generation for c in a.log()] == [3, 2, 1]
    a.branch("side")
    a.commit({"w": 3}, branch="side")
    b.commit({"w": 4}, branch="side")
    a.refresh("side")
    a.commit({"w": 5}, branch="side")
    assert a.restore("side") == {"w": 5}


def test_the_newest_commit_of_a_step_is_the_step():
    manager = Manager(place())
    manager.save(0, tree(0))
    manager.save(0, tree(1), overwrite=True)
    manager.save(1, tree(2))
    manager.delete(0)
    manager.reload()
    assert manager.all_steps() == [1]


# -- numbers of steps ----------------------------------------------------------


@pytest.mark.parametrize("make", [int, np.int64, np.uint8, jnp.int32, np.array, jnp.array])
def test_integers_of_any_type_are_steps(make):
    manager = Manager(place())
    assert manager.should_save(make(3))
    assert manager.save(make(3), tree(3), metrics={"loss": 1})
    assert manager.save(4, tree(4))
    assert manager.metrics(make(3)) == {"loss": 1.0}
    assert_restores(manager.restore(make(3)), 3)
    assert [type(step) for step in manager.all_steps()] == [int, int]
    assert manager.repo.resolve("step:3").metadata == {"step": 3}
    manager.delete(make(3))
    assert manager.all_steps() == [4]


@pytest.mark.parametrize(
    "step", [True, np.True_, jnp.array(True), -1, 1.0, np.float32(1), "1", [1]]
)
def test_other_things_are_no_steps(step):
    manager = Manager(place())
    for call in (manager.should_save, manager.metrics, manager.restore, manager.delete):
        with pytest.raises(VcjaxError, match="step") as caught:
            call(step)
        assert caught.value.hint
    with pytest.raises(VcjaxError, match="step") as caught:
        manager.save(step, tree(0))
    assert caught.value.hint
    assert manager.latest_step() is None


# -- deleting and pruning ------------------------------------------------------


def test_deleting_the_latest_step_takes_the_branch_back():
    manager = Manager(place())
    manager.save(0, tree(0))
    manager.save(1, tree(1))
    gone = manager.repo.resolve("HEAD")
    manager.delete(1)
    assert manager.all_steps() == [0]
    assert [commit.step for commit in manager.repo.log()] == [0]
    with pytest.raises(PrunedError, match=r"step 1 .*delete\(\)"):
        manager.restore(1)
    with pytest.raises(PrunedError):
        manager.repo.restore(gone)
    manager.save(2, tree(2))
    assert [commit.step for commit in manager.repo.log()] == [2, 0]
    with pytest.raises(FileNotFoundError):
        manager.delete(7)
    manager.reload()
    assert manager.all_steps() == [0, 2]
    assert manager.repo.fsck().ok


def test_the_latest_step_stays_where_a_tag_points_to_it():
    manager = Manager(place())
    manager.save(0, tree(0))
    manager.save(1, tree(1))
    manager.repo.tag("v1")
    with pytest.raises(VcjaxError, match="step 1 is not deleted"):
        manager.delete(1)
    assert manager.all_steps() == [0, 1]
    assert_restores(manager.restore(1), 1)


def test_a_step_with_a_tag_cannot_be_deleted():
    manager = Manager(place(), Options(max_to_keep=2))
    manager.save(0, tree(0))
    manager.repo.tag("v1")
    manager.save(1, tree(1))
    with pytest.raises(VcjaxError, match="step 0 is not deleted"):
        manager.delete(0)
    manager.save(2, tree(2))
    manager.save(3, tree(3))
    assert manager.all_steps() == [0, 2, 3]  # what is not pruned is not forgotten
    assert_restores(manager.restore(0), 0)
    manager.repo.delete_tag("v1")
    manager.save(4, tree(4))
    assert manager.all_steps() == [3, 4]


@pytest.mark.parametrize("many", [20, 60])
def test_a_save_reads_no_more_when_there_are_more_steps(many, monkeypatch):
    manager = Manager(place(), Options(max_to_keep=3))
    for step in range(many):
        manager.save(step, tree(step))
    read, read_versioned = manager.repo.store.read_many, manager.repo.store.read_versioned
    keys = []

    def counted(names):
        keys.extend(names)
        return read(names)

    def counted_one(name):
        keys.append(name)
        return read_versioned(name)

    monkeypatch.setattr(manager.repo.store, "read_many", counted)
    monkeypatch.setattr(manager.repo.store, "read_versioned", counted_one)
    manager.save(many, tree(many))
    assert len(keys) < 40
    # The branch's state with those beside it, it once more and the new one; the new one to prune.
    assert sum(key.startswith("log/") for key in keys) <= 6
    assert sum(key.startswith("commits/") for key in keys) == 0


# -- failures ------------------------------------------------------------------


def failing(error):
    def write(leaves, known):
        raise error

    return write


def test_a_failed_background_save_says_which(monkeypatch):
    options = Options(enable_async_checkpointing=True)
    with Manager(place(), options) as manager:
        manager.save(0, tree(0))
        manager.wait_until_finished()
        full = StorageError("the disk is full", hint="free space")
        with monkeypatch.context() as patch:
            patch.setattr(manager.repo.objects, "write", failing(full))
            manager.save(1, tree(1))
            with pytest.raises(StorageError) as caught:
                manager.save(2, tree(2))
        text = "step 1, saved in the background, failed: the disk is full; step 2 was not saved"
        assert caught.value.message == text
        assert caught.value.hint == "free space"
        assert caught.value.__cause__ is full
        assert manager.all_steps() == [0]
        assert manager.save(2, tree(2))
        assert manager.all_steps() == [0, 2]


def test_a_foreign_error_keeps_its_type(monkeypatch):
    options = Options(enable_async_checkpointing=True)
    with Manager(place(), options) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(manager.repo.objects, "write", failing(MemoryError("no room")))
            manager.save(1, tree(1))
            with pytest.raises(MemoryError, match="no room") as caught:
                manager.save(2, tree(2))
        note = "step 1, saved in the background, failed; step 2 was not saved"
        assert caught.value.__notes__ == [note]
        manager.wait_until_finished()
        assert manager.latest_step() is None
