"""Listing, describing and restoring steps: each case runs on Orbax's manager and on ours."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest

TREE = {"params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": jnp.ones(3)}, "n": 7}


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


# -- listing -------------------------------------------------------------------


def test_another_manager_sees_steps_after_reload(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as writer, manager(ocp, tmp_path) as reader:
        save(ocp, writer, 1)
        assert reader.all_steps() == []
        reader.reload()
        assert reader.all_steps() == [1]
        save(ocp, writer, 2)
        assert reader.all_steps(read=True) == [1, 2]
        writer.delete(1)
        reader.reload()
        assert reader.all_steps() == [2]


def test_a_step_of_another_manager_is_found_unlisted(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as reader, manager(ocp, tmp_path) as writer:
        save(ocp, writer, 0)
        save(ocp, writer, 1, custom_metadata={"tokens": 5})
        np.testing.assert_array_equal(reader.restore(0)["w"], [0, 0, 0])
        assert reader.metadata(1).custom_metadata == {"tokens": 5}
        assert list(reader.item_metadata(1).keys()) == ["w"]
        assert reader.all_steps() == []
        with pytest.raises(FileNotFoundError):
            reader.restore(2)


def test_delete(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        for step in range(3):
            save(ocp, made, step)
        made.delete(1)
        assert made.all_steps() == [0, 2]
        made.delete(2)  # the latest
        assert made.all_steps() == [0]
        assert made.latest_step() == 0
        with pytest.raises(FileNotFoundError):
            made.delete(1)
        with pytest.raises(FileNotFoundError):
            made.restore(2)
        assert save(ocp, made, 2, {"w": np.full(3, 9)})  # the number is free again
        np.testing.assert_array_equal(made.restore(2)["w"], [9, 9, 9])
        made.delete(0)
        made.delete(2)
        assert made.all_steps() == []
        assert save(ocp, made, 0)
        made.reload()
        assert made.all_steps() == [0]


def test_metrics_and_the_best_step(ocp, manager, save, tmp_path):
    options = {"best_fn": lambda m: m["eval"]["loss"], "best_mode": "min", "max_to_keep": 2}
    losses = [0.5, 0.1, 0.3, 0.4]
    with manager(ocp, tmp_path, **options) as made:
        for step, loss in enumerate(losses):
            save(ocp, made, step, metrics={"eval": {"loss": loss}, "note": "x", "hits": [1, 2]})
            assert made.best_step() == min(range(step + 1), key=losses.__getitem__)
        assert {1, 2} <= set(made.all_steps())
        assert made.metrics(1) == {"eval": {"loss": 0.1}, "note": "x", "hits": [1, 2]}
        assert 0 not in made.all_steps()
    with manager(ocp, tmp_path, **options) as made:
        assert made.best_step() == 1
        assert made.metrics(2)["eval"] == {"loss": 0.3}
        assert made.metadata(1).metrics["eval"] == {"loss": 0.1}


def test_steps_without_metrics_stay(ocp, manager, save, tmp_path):
    options = {"best_fn": lambda m: m["acc"], "max_to_keep": 1}
    with manager(ocp, tmp_path, **options) as made:
        save(ocp, made, 0)
        for step in (1, 2, 3):
            save(ocp, made, step, metrics={"acc": step})
        assert made.all_steps() == [0, 3]
        assert made.metrics(0) is None
        assert made.best_step() == 3


def test_without_metrics_nothing_is_best(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, best_fn=lambda m: m["acc"]) as made:
        save(ocp, made, 0)
        assert made.best_step() is None
        assert made.latest_step() == 0
        save(ocp, made, 1, metrics={"acc": 0.5})
        assert made.best_step() == 1


def test_metadata_of_the_run_are_there_before_the_first_step(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, metadata={"model": "tiny"}) as first:
        with manager(ocp, tmp_path) as second:
            assert second.metadata().custom_metadata == {"model": "tiny"}
        with manager(ocp, tmp_path, metadata={"model": "another"}) as third:
            assert third.metadata().custom_metadata == {"model": "tiny"}
            save(ocp, third, 0)
        assert first.metadata().custom_metadata == {"model": "tiny"}
    with manager(ocp, tmp_path / "b", metadata={"a": 1}, save_root_metadata=False) as made:
        save(ocp, made, 0)
        assert made.metadata().custom_metadata == {}
    with manager(ocp, tmp_path / "b", metadata={"a": 2}) as made:
        assert made.metadata().custom_metadata == {"a": 2}


def test_metadata_of_a_step_are_a_dict(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        with pytest.raises(ValueError, match="dict"):
            save(ocp, made, 0, custom_metadata=["a"])
        assert made.all_steps() == []


def test_metadata_of_the_run_and_of_steps(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, metadata={"model": "tiny", "layers": [1, 2]}) as made:
        save(ocp, made, 1, custom_metadata={"tokens": 5, "data": {"split": "train"}})
        save(ocp, made, 2)
        assert made.metadata().custom_metadata == {"model": "tiny", "layers": [1, 2]}
    with manager(ocp, tmp_path, metadata={"model": "another"}) as made:
        assert made.metadata().custom_metadata == {"model": "tiny", "layers": [1, 2]}
        step = made.metadata(1)
        assert step.custom_metadata == {"tokens": 5, "data": {"split": "train"}}
        assert made.metadata(2).custom_metadata == {}
        handler = "StandardCheckpointHandler"
        assert step.item_handlers["default"].endswith(handler)
        now = datetime.datetime.now().timestamp() * 1e9
        assert now - 1e11 < step.commit_timestamp_nsecs <= now + 1e9
        with pytest.raises(FileNotFoundError):
            made.metadata(3)


def test_item_metadata_describes_without_data(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        save(ocp, made, 1, TREE)
        metadata = made.item_metadata(1)
        leaf = metadata["params"]["w"]
        assert isinstance(leaf, ocp.metadata.ArrayMetadata)
        assert (leaf.shape, leaf.dtype, leaf.sharding) == ((2, 3), np.dtype("float32"), None)
        assert metadata["params"]["b"].sharding is not None
        assert isinstance(metadata["n"], ocp.metadata.ScalarMetadata)
        abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), metadata)
        assert abstract["params"]["b"].shape == (3,)
        args = ocp.checkpoint_utils.construct_restore_args(metadata)
        assert args["params"]["w"].restore_type is np.ndarray
        restored = made.restore(1, args=ocp.args.StandardRestore(abstract))
        np.testing.assert_array_equal(restored["params"]["w"], TREE["params"]["w"])
        with pytest.raises(ValueError, match="step"):
            made.item_metadata(None)


# -- restoring -----------------------------------------------------------------


def test_restore_gives_back_what_was_saved(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        save(ocp, made, 1, TREE)
        save(ocp, made, 2, {"w": np.zeros(1)})
        for restored in (
            made.restore(1),
            made.restore(1, args=ocp.args.StandardRestore()),
            made.restore(1, args=ocp.args.StandardRestore(TREE)),
        ):
            assert_same(restored, TREE)
            assert type(restored["params"]["w"]) is np.ndarray
            assert isinstance(restored["params"]["b"], jax.Array)
            assert type(restored["n"]) is int
        assert_same(made.restore(None), {"w": np.zeros(1)})


def test_a_fresh_manager_restores_too(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        save(ocp, made, 1, TREE)
    with manager(ocp, tmp_path) as made:
        assert_same(made.restore(1, args=ocp.args.StandardRestore(TREE)), TREE)
        assert_same(made.restore(1), TREE)


def test_restore_from_another_directory(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path / "a") as made:
        save(ocp, made, 1, TREE)
    with manager(ocp, tmp_path / "b") as made:
        args = ocp.args.StandardRestore(TREE)
        assert_same(made.restore(1, directory=tmp_path / "a", args=args), TREE)
        assert_same(made.restore(None, directory=tmp_path / "a", args=args), TREE)
        assert made.all_steps() == []


def test_step_folders_exist_as_paths(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, step_prefix="ckpt", step_format_fixed_length=4) as made:
        save(ocp, made, 7)
        assert (made.directory / "ckpt_0007" / "default").is_dir()
        save(ocp, made, 8)
        made.delete(7)
        assert not (made.directory / "ckpt_0007").exists()
        found = sorted(p.name for p in made.directory.iterdir() if p.name.startswith("ckpt"))
        assert found == ["ckpt_0008"]


def test_orbaxs_own_functions_find_the_steps(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path) as made:
        for step in (3, 12):
            save(ocp, made, step)
        assert sorted(ocp.utils.checkpoint_steps(made.directory)) == [3, 12]
        found = ocp.checkpoint_utils.checkpoints_iterator(made.directory, timeout=0)
        assert list(found) == [12]


def test_a_logger_gets_an_entry_for_each_save_and_restore(ocp, save, tmp_path):
    entries = []

    class Logger(ocp.logging.AbstractLogger):
        def log_entry(self, entry):
            entries.append(entry)

    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options, logger=Logger()) as made:
        save(ocp, made, 3)
        save(ocp, made, 3)
        made.restore(3)
    assert [(entry["step"], entry["event_type"]) for entry in entries] == [
        (3, "save"),
        (3, "restore"),
    ]


def test_old_folders_go_with_old_steps(ocp, manager, save, tmp_path):
    with manager(ocp, tmp_path, max_to_keep=2, enable_async_checkpointing=True) as made:
        for step in range(4):
            save(ocp, made, step)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_subclasses_may_choose_what_goes(ocp, tmp_path):
    class Mine(ocp.CheckpointManager):
        def _get_old_steps_to_remove(self):
            assert self._options.max_to_keep == 1
            assert not self._track_best
            return [info.step for info in self._checkpoints if info.step % 2]

    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with Mine(tmp_path, options=options) as made:
        for step in range(5):
            made.save(step, args=ocp.args.StandardSave({"w": np.full(3, step)}))
        assert made.all_steps() == [0, 2, 4]
