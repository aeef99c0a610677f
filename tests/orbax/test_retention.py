"""Retention is pruning: steps stay in history, data go in the background; steps are commits."""

import threading

import numpy as np
import pytest

import vcjax
from vcjax.errors import PrunedError, StorageError

from ..subprocesses import PATIENCE


def manager(ours, folder, **options):
    options.setdefault("enable_async_checkpointing", False)
    return ours.CheckpointManager(folder, options=ours.CheckpointManagerOptions(**options))


def failing(leaves, known):
    raise StorageError("the disk is full", hint="free space")


def test_a_pruned_step_says_when_and_why(ours, tmp_path):
    with manager(ours, tmp_path, max_to_keep=1, enable_async_checkpointing=True) as made:
        for step in range(3):
            tree = {"w": np.full(50_000, step)}
            made.save(step, args=ours.args.StandardSave(tree), metrics={"loss": 3 - step})
        made.wait_until_finished()
        assert made.all_steps() == [2]
        log = list(made.repo.log())
        assert [commit.step for commit in log] == [2, 1, 0]
        assert [commit.metrics["loss"] for commit in log] == [1, 2, 3]
        leaves = [key for key in made.repo.store.keys("leaves/") if key.endswith("zarr.json")]
        assert len(leaves) == 1  # the data are gone
        assert made.metrics(0) == {"loss": 3}
        message = r"step 0 \(commit \w+\) has no data any more: pruned on 20.* by max_to_keep=1"
        for restore in (made.restore, made.item_metadata):
            with pytest.raises(PrunedError, match=message):
                restore(0)
        with pytest.raises(FileNotFoundError):  # as callers of Orbax expect
            made.restore(0)
        with pytest.raises(PrunedError, match=message):
            made.repo.restore("step:0")
    with manager(ours, tmp_path) as made:
        with pytest.raises(PrunedError, match=message):
            made.restore(1 - 1)
        assert made.metrics(1) == {"loss": 2}
        with pytest.raises(FileNotFoundError, match="no step 9"):
            made.restore(9)
        assert made.repo.fsck().ok


def test_a_step_that_another_manager_saved_and_dropped(ours, tmp_path):
    options = ours.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with (
        ours.CheckpointManager(tmp_path, options=options) as reader,
        ours.CheckpointManager(tmp_path, options=options) as writer,
    ):
        for step in range(2):
            writer.save(step, args=ours.args.StandardSave({"w": np.full(9_000, step)}))
        with pytest.raises(PrunedError, match="max_to_keep=1"):
            reader.restore(0)
        assert reader.restore(1)["w"][0] == 1
        assert reader.all_steps() == []


def test_a_policy_object_is_quoted(ours, tmp_path):
    policy = ours.checkpoint_managers.EveryNSteps(2)
    with manager(ours, tmp_path, preservation_policy=policy) as made:
        for step in range(1, 4):
            made.save(step, args=ours.args.StandardSave({"w": np.full(9_000, step)}))
        assert made.all_steps() == [2, 3]
        with pytest.raises(PrunedError, match=r"by EveryNSteps\(interval_steps=2"):
            made.restore(1)


def test_the_next_save_does_not_wait_for_pruning(ours, tmp_path, monkeypatch):
    go, started = threading.Event(), threading.Event()
    with manager(ours, tmp_path, max_to_keep=1, enable_async_checkpointing=True) as made:
        prune = made.repo.prune

        def slow(*args):
            started.set()
            assert go.wait(PATIENCE)
            return prune(*args)

        monkeypatch.setattr(made.repo, "prune", slow)
        for step in range(3):
            made.save(step, args=ours.args.StandardSave({"w": np.full(9_000, step)}))
        assert started.wait(PATIENCE)
        assert made.all_steps() == [2]
        assert made.restore(2)["w"][0] == 2
        go.set()
        made.wait_until_finished()
        assert made.all_steps() == [2]
        for step in (0, 1):
            with pytest.raises(PrunedError):
                made.restore(step)


def test_a_failure_to_prune_is_raised_and_loses_nothing(ours, tmp_path, monkeypatch):
    with manager(ours, tmp_path, max_to_keep=1, enable_async_checkpointing=True) as made:
        made.save(0, args=ours.args.StandardSave({"w": np.zeros(9_000)}))
        made.wait_until_finished()
        with monkeypatch.context() as patch:
            patch.setattr(made.repo, "prune", lambda *args: failing(*args))
            made.save(1, args=ours.args.StandardSave({"w": np.ones(9_000)}))
            with pytest.raises(StorageError):
                made.wait_until_finished()
        made.reload()
        assert made.all_steps() == [0, 1]
        made.save(2, args=ours.args.StandardSave({"w": np.ones(9_000)}))
        made.wait_until_finished()
        assert made.all_steps() == [2]


def test_tagged_steps_stay(ours, tmp_path):
    with manager(ours, tmp_path, max_to_keep=1, enable_async_checkpointing=True) as made:
        for step in range(4):
            made.save(step, args=ours.args.StandardSave({"w": np.full(9_000, step)}))
            made.wait_until_finished()
            if step == 1:
                made.repo.tag("good")
        assert made.all_steps() == [1, 3]
        assert made.restore(1)["w"][0] == 1


# -- history -------------------------------------------------------------------


def test_steps_are_commits_like_any_other(ours, tmp_path):
    with manager(ours, tmp_path) as made:
        for step in range(3):
            tree = {"a": np.zeros(9), "b": np.full(9, step)}
            metrics = {"eval": {"loss": 1 / (step + 1)}, "note": "x"}
            made.save(step, args=ours.args.StandardSave(tree), metrics=metrics, message=f"s{step}")
    repo = vcjax.Repository.open(tmp_path)
    assert repo.resolve("best:eval/loss").step == 2
    assert [c.path for c in repo.diff("step:0", "step:2").with_status("changed")] == ["b"]
    assert repo.resolve("step:1").message == "s1"
    repo.commit({"a": 1}, "by hand", metadata={"step": 7})
    repo.commit({"a": 2}, "no step")
    with manager(ours, tmp_path) as made:
        assert made.all_steps() == [0, 1, 2, 7]
        assert made.restore(7) == {"a": 1}
        assert made.metadata(7).item_handlers["default"].endswith("StandardCheckpointHandler")


def test_saves_follow_what_others_commit(ours, tmp_path):
    a, b = manager(ours, tmp_path), manager(ours, tmp_path)
    for step in range(4):
        made = (a, b)[step % 2]
        made.save(step, args=ours.args.StandardSave({"w": np.full(3, step)}))
    assert b.all_steps() == [0, 1, 2, 3]
    assert a.all_steps() == [0, 1, 2]
    assert [commit.step for commit in a.repo.log()] == [3, 2, 1, 0]
    a.repo.branch("main", at="HEAD~2", force=True)  # somebody takes two steps back
    b.save(9, args=ours.args.StandardSave({"w": np.full(3, 9)}))
    assert b.all_steps() == [0, 1, 9]
