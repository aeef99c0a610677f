"""Behaviours of saving that callers rely on: each case runs on Orbax's manager and on ours."""

from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from ..subprocesses import PATIENCE

TREE = {"params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": jnp.ones(3)}, "n": 7}


# -- saving --------------------------------------------------------------------


def test_a_new_manager_has_nothing(ocp, manager, tmp_path):
    with manager(ocp, tmp_path / "run") as made:
        assert made.all_steps() == []
        assert made.latest_step() is None
        assert made.best_step() is None
        assert made.metrics(3) is None
        assert not made.is_saving_in_progress()
        for step in (None, 3):
            with pytest.raises(FileNotFoundError):
                made.restore(step)


def test_the_directory_is_a_path(ocp, manager, tmp_path):
    with manager(ocp, tmp_path / "deep" / "run") as made:
        assert made.directory == tmp_path / "deep" / "run"
        assert made.directory.is_dir()
        assert (made.directory / "x").name == "x"


def test_save_says_whether_it_saved(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, save_interval_steps=5) as made:
        assert save(ocp, made, 3)  # the first one always
        assert not save(ocp, made, 4)
        assert save(ocp, made, 5)
        assert not save(ocp, made, 5)  # there already
        assert not save(ocp, made, 2)  # older
        assert not save(ocp, made, 6)
        assert save(ocp, made, 6, force=True)
        assert save(ocp, made, 4, force=True)
        assert sorted(made.all_steps()) == [3, 4, 5, 6]


def test_should_save_foresees_it(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, save_interval_steps=2, save_on_steps=[7]) as made:
        assert made.should_save(1)
        save(ocp, made, 4)
        assert [step for step in range(12) if made.should_save(step)] == [6, 7, 8, 10]


def test_an_existing_step_is_not_replaced_by_force(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        save(ocp, made, 1)
        with pytest.raises(ocp.checkpoint_manager.StepAlreadyExistsError):
            save(ocp, made, 1, force=True)
        with pytest.raises(ValueError, match="1"):
            save(ocp, made, 1, force=True)


def test_should_save_fn_stands_alone(ocp, manager, save, tmp_path):
    asked = []

    def decide(step, latest):
        asked.append((step, latest))
        return step in (2, 3)

    with manager(ocp, tmp_path, should_save_fn=decide, save_interval_steps=1) as made:
        assert [save(ocp, made, step) for step in range(5)] == [False, False, True, True, False]
    assert asked[-1] == (4, 3)


def test_arguments_of_the_wrong_kind(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        with pytest.raises(ValueError, match="args"):
            made.save(0)
        with pytest.raises(ValueError, match="args"):
            made.save(0, ocp.args.StandardSave(TREE))
        with pytest.raises(ValueError, match="args"):
            made.save(0, args=TREE)
        with pytest.raises(ValueError, match="item"):
            made.save(0, args=ocp.args.StandardSave(None))
        save(ocp, made, 0)
        with pytest.raises(ValueError, match="Composite"):
            made.save(1, args=ocp.args.Composite(x=ocp.args.StandardSave(TREE)))
        with pytest.raises(ValueError, match="Composite"):
            made.restore(0, args=ocp.args.Composite(x=ocp.args.StandardRestore(TREE)))
        assert made.all_steps() == [0]


def test_exclusive_arguments_of_the_constructor(ocp, manager, tmp_path):
    handler = ocp.StandardCheckpointHandler()
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    checkpointer = ocp.Checkpointer(handler)
    for arguments in (
        {"checkpointers": checkpointer, "item_names": ("a",)},
        {"checkpointers": checkpointer, "item_handlers": handler},
        {"checkpointers": checkpointer, "handler_registry": registry},
        {"item_names": ("a",), "item_handlers": handler},
        {"item_names": ("a",), "handler_registry": registry},
        {"item_handlers": {"a": handler}, "handler_registry": registry},
    ):
        with pytest.raises(ValueError, match=r"together|exclusive|can not be used"):
            ocp.CheckpointManager(tmp_path, **arguments)
    policy = ocp.checkpoint_managers.LatestN(2)
    with pytest.raises(ValueError, match="exclu"):
        manager(ocp, tmp_path, preservation_policy=policy, max_to_keep=2)
    with pytest.raises(ValueError, match="best_mode"):
        manager(ocp, tmp_path, best_mode="minimum")


def test_read_only_saves_and_deletes_nothing(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        save(ocp, made, 1)
    with manager(ocp, tmp_path, read_only=True) as made:
        assert not made.should_save(2)
        assert not save(ocp, made, 2)
        made.delete(1)
        assert made.all_steps() == [1]
        np.testing.assert_array_equal(made.restore(1)["w"], [1, 1, 1])


def test_a_read_only_manager_may_come_before_the_first_step(ocp, manager, save, tmp_path):
    """As in a program that evaluates what another one is about to train."""
    with manager(ocp, tmp_path / "run", read_only=True, metadata={"of": "reader"}) as reader:
        assert reader.all_steps() == []
        assert reader.latest_step() is None
        assert reader.metadata().custom_metadata == {"of": "reader"}
        with pytest.raises(FileNotFoundError):
            reader.restore(None)
        with manager(ocp, tmp_path / "run") as made:
            assert made.metadata().custom_metadata == {}
            save(ocp, made, 4)
        reader.reload()
        assert reader.all_steps() == [4]
        assert not save(ocp, reader, 5)
        np.testing.assert_array_equal(reader.restore(4)["w"], [4, 4, 4])


def test_an_empty_folder_does_without_create(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, create=False) as made:
        assert save(ocp, made, 1)
        assert made.all_steps() == [1]


def test_arrays_may_be_written_to_after_a_background_save(ocp, manager, tmp_path):
    array = np.zeros(1000)
    with manager(ocp, tmp_path, enable_async_checkpointing=True) as made:
        made.save(0, args=ocp.args.StandardSave({"w": array}))
        array[:] = 1
        assert made.latest_step() == 0
        made.wait_until_finished()
        assert not made.is_saving_in_progress()
        made.check_for_errors()
        assert not np.any(made.restore(0)["w"])


def test_background_saves_follow_one_another(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, enable_async_checkpointing=True, max_to_keep=2) as made:
        for step in range(4):
            assert save(ocp, made, step)
            assert made.latest_step() == step
        assert made.all_steps() == [2, 3]  # what is to go is not listed any more
        made.wait_until_finished()
        assert made.all_steps() == [2, 3]
    with manager(ocp, tmp_path) as made:
        assert made.all_steps() == [2, 3]


def test_any_thread_may_wait(ocp, manager, save, tmp_path):
    with (
        manager(ocp, tmp_path, enable_async_checkpointing=True) as made,
        ThreadPoolExecutor(8) as executor,
    ):
        for step in range(3):
            assert save(ocp, made, step)
            waiters = [executor.submit(made.wait_until_finished) for _ in range(8)]
            made.wait_until_finished()
            for waiter in waiters:
                waiter.result(PATIENCE)
            assert list(made.all_steps()) == list(range(step + 1))


def test_a_callback_after_each_background_save(ocp, manager, save, tmp_path):
    called = []
    asynchronous = ocp.options.AsyncOptions(post_finalization_callback=lambda: called.append(1))
    options = {"async_options": asynchronous, "enable_async_checkpointing": True}
    with manager(ocp, tmp_path, **options) as made:
        for step in range(2):
            save(ocp, made, step)
    assert called == [1, 1]
    with pytest.raises(ValueError, match="post_finalization_callback"):
        manager(ocp, tmp_path, async_options=asynchronous)
