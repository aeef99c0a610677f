"""A run that Orbax began goes on here, after its directory was imported."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vcjax.orbax.files.import_ import plan_import, run_import
from vcjax.orbax.files.steps import read_directory
from vcjax.repo import Repository

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # of Orbax


class NoteHandler(orbax.checkpoint.CheckpointHandler):
    """Writes a file, as a data iterator does."""

    def save(self, directory, args):
        (directory / "note.txt").write_text(args.text)

    def restore(self, directory, args):
        return (directory / "note.txt").read_text()


@orbax.checkpoint.args.register_with_handler(NoteHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Note(orbax.checkpoint.args.CheckpointArgs):
    text: str = ""


def sharding():
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    return NamedSharding(mesh, PartitionSpec("x"))


def state(step):
    return {"w": jax.device_put(np.full(4, step, np.float32), sharding()), "n": step}


def run(ocp, folder, steps):
    """A run's next steps."""
    args = ocp.args
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda m: m["eval"]["loss"], best_mode="min"
    )
    with ocp.CheckpointManager(folder, options=options, metadata={"run": 1}) as manager:
        for step in steps:
            items = args.Composite(
                state=args.StandardSave(state(step)),
                config=args.JsonSave({"lr": 0.1}),
                note=Note(f"at {step}"),
            )
            metrics = {"eval": {"loss": 10 - step}, "name": "x"}
            manager.save(step, args=items, metrics=metrics, custom_metadata={"tokens": step})
        manager.wait_until_finished()
        return manager.all_steps(), manager.best_step(), manager.metrics(manager.latest_step())


def test_an_imported_run_goes_on(ours, tmp_path):
    assert run(orbax.checkpoint, tmp_path / "old", [1, 2])[0] == [1, 2]
    repo = Repository.init(tmp_path / "new")
    list(run_import(repo, plan_import(repo, read_directory(tmp_path / "old"))))
    with ours.CheckpointManager(tmp_path / "new") as manager:
        assert manager.all_steps() == [1, 2]
        assert manager.metadata().custom_metadata == {"run": 1}
        assert manager.metadata(2).custom_metadata == {"tokens": 2}
        assert manager.metrics(2) == {"eval": {"loss": 8}, "name": "x"}
        target = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), manager.item_metadata(2).state.tree
        )
        args = ours.args.Composite(
            state=ours.args.StandardRestore(target), config=ours.args.JsonRestore(), note=Note()
        )
        restored = manager.restore(2, args=args)
        assert restored.state["w"].sharding == sharding()
        np.testing.assert_array_equal(restored.state["w"], np.full(4, 2))
        assert int(restored.state["n"]) == 2
        assert restored.config == {"lr": 0.1}
        assert restored.note == "at 2"
        assert manager.restore(1).note == "at 1"
    steps, best, metrics = run(ours, tmp_path / "new", [3, 4])
    assert (steps, best) == ([3, 4], 4)
    assert metrics == {"eval": {"loss": 6}, "name": "x"}


def test_a_folder_of_orbaxs_is_not_taken_for_an_empty_one(ours, tmp_path, monkeypatch):
    from absl import logging

    run(orbax.checkpoint, tmp_path, [1, 2])
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    with ours.CheckpointManager(tmp_path) as manager:
        assert manager.all_steps() == []
    assert any("2 steps that Orbax saved" in text for text in warnings)
