"""Orbax's directories as commits."""

import json
import shutil
from collections.abc import Generator

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
import pytest

import vcjax
import vcjax.orbax
from vcjax.cli import main
from vcjax.errors import FormatError, StepExistsError
from vcjax.orbax.files.import_ import plan_import, run_import
from vcjax.orbax.files.steps import read_directory

pytestmark = [  # about Orbax's own calls
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
    pytest.mark.filterwarnings("ignore:Use `:DeprecationWarning"),
]


LAYOUTS = {
    "ocdbt": {},
    "a folder per leaf": {"use_ocdbt": False},
    "zarr3": {"use_zarr3": True},
    "zarr3, a folder per leaf": {"use_ocdbt": False, "use_zarr3": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_what_orbax_restores_from_it(
    layout, repo, tmp_path, tree, import_all, assert_same
):
    handler = ocp.PyTreeCheckpointHandler(**LAYOUTS[layout])
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "saved", args=ocp.args.PyTreeSave({**tree(), "text": "yes"}))
        theirs = checkpointer.restore(tmp_path / "saved")
    [commit] = import_all(repo, tmp_path / "saved")
    assert commit.message == "import saved"
    ours = repo.restore()
    # Orbax makes a Python number of NumPy's; we know its dtype.
    assert type(ours["scalars"]["numpy"]) is np.float32
    assert_same(ours, theirs)
    assert repo.fsck().ok


def test_the_files_of_the_v1_api(repo, tmp_path, tree, import_all, assert_same, export):
    given = tree()
    del given["scalars"]["numpy"]  # the v1 API refuses NumPy's scalars
    ocp_v1.save_pytree(tmp_path / "one", given, custom_metadata={"lr": 0.1})
    with ocp_v1.training.Checkpointer(tmp_path / "many") as checkpointer:
        checkpointer.save_pytree(3, given, metrics={"loss": 0.5})
        checkpointer.save_checkpointables(4, {"a": {"w": jnp.ones(2)}, "b": {"n": 1}})
    [commit] = import_all(repo, tmp_path / "one")
    assert commit.metadata["orbax"]["custom_metadata"] == {"lr": 0.1}
    theirs = ocp_v1.load_pytree(tmp_path / "one")
    assert_same(repo.restore(), theirs)
    import_all(repo, tmp_path / "many")
    assert_same(repo.restore("step:3"), theirs)
    assert repo.resolve("best:loss").step == 3
    assert_same(repo.restore("step:4"), {"a": {"w": jnp.ones(2)}, "b": {"n": 1}})
    repo.commit({"only": jnp.ones(3)})
    export(repo, "HEAD", tmp_path / "back")
    assert_same(ocp_v1.load_pytree(tmp_path / "back"), {"only": jnp.ones(3)})


def test_a_tree_described_by_msgpack_as_orbax_had_it_at_first(
    repo, tmp_path, import_all, assert_same
):
    folder = tmp_path / "old"
    arrays = {"a": {"w": np.arange(6.0).reshape(2, 3)}, "b": np.ones(2, np.int32)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays))
        for name in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding"):
            (folder / name).unlink(missing_ok=True)
        names = {"a": {"w": "PLACEHOLDER://a.w"}, "b": "PLACEHOLDER://b", "n": 3}
        (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(names))
        theirs = checkpointer.restore(folder)
    import_all(repo, folder)
    ours = repo.restore()
    assert ours.pop("n") == theirs.pop("n") == 3
    assert_same(ours, theirs)


def test_a_manager_goes_on_where_orbax_stopped(
    run, tmp_path, capsys, options, import_all, assert_same
):
    repo = vcjax.Repository.init(tmp_path / "repo")
    source = read_directory(run)
    assert source.notices == (
        "4.orbax-checkpoint-tmp-17: passed over, an interrupted save left it behind",
    )
    commits = import_all(repo, run)
    assert [commit.message for commit in commits] == ["step 1", "step 2", "step 3"]
    assert [commit.step for commit in commits] == [1, 2, 3]
    first = commits[0]
    assert first.metrics == {"loss": 1.0, "by/task": 2.0}
    noted = json.loads((run / "1" / "_CHECKPOINT_METADATA").read_text())
    assert first.metadata["imported"] == {
        "format": "orbax",
        "source": str(run / "1"),
        "started": noted["init_timestamp_nsecs"],
        "finished": noted["commit_timestamp_nsecs"],
    }
    fields = first.metadata["orbax"]
    assert fields["metrics"] == {"loss": 1.0, "by": {"task": 2.0}, "note": "x"}
    assert fields["custom_metadata"] == {"lr": 0.1}
    assert fields["root_metadata"] == {"model": "tiny"}

    with vcjax.CheckpointManager(repo.url) as manager:
        assert manager.all_steps() == [1, 2, 3]
        with ocp.CheckpointManager(run, options=options()) as theirs:
            for step in (1, 2, 3):
                expected = theirs.restore(step, args=ocp.args.StandardRestore())
                assert_same(manager.restore(step), expected)
        manager.save(4, {"same": np.zeros(3)})
    assert repo.resolve("step:4").parents == (commits[-1].digest,)
    assert main(["log", f"--repo={repo.url}", "--metrics=loss", "--oneline"]) == 0
    assert "0.33333 " in capsys.readouterr().out


def test_equal_leaves_are_stored_once(run, repo, import_all):
    import_all(repo, run)
    objects = {key for key in repo.store.keys("leaves/") if key.endswith("zarr.json")}
    # "new" of step 1 is "same", and that of step 3 is that of step 2.
    assert len(objects) == 2


def test_an_interrupted_import_is_repeated(run, repo, tmp_path, import_all):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    steps = run_import(repo, plan_import(repo, read_directory(run)))
    next(steps)
    assert isinstance(steps, Generator)
    steps.close()
    plan = plan_import(repo, read_directory(moved))  # known by when it was saved
    assert [step.step for step in plan.skipped] == [1]
    assert [step.step for step in plan.steps] == [2, 3]
    assert [commit.step for commit in import_all(repo, moved)] == [2, 3]
    assert import_all(repo, run) == []


def test_steps_of_other_origin_are_not_mixed_in(run, repo):
    repo.commit({"w": 1}, metadata={"step": 2})
    with pytest.raises(StepExistsError, match="the numbers 2"):
        plan_import(repo, read_directory(run))
    assert [commit.step for commit in repo.log()] == [2]


def test_names_of_steps(repo, tmp_path, options, import_all):
    folder = tmp_path / "named"
    fixed = options(step_prefix="ckpt", step_format_fixed_length=6)
    with ocp.CheckpointManager(folder, options=fixed) as manager:
        manager.save(7, args=ocp.args.StandardSave({"w": np.ones(2)}))
    with ocp.CheckpointManager(folder, options=options(step_prefix="ema")) as manager:
        manager.save(7, args=ocp.args.StandardSave({"w": np.zeros(2)}))
    with pytest.raises(FormatError, match="'ckpt_000007' and 'ema_7' are both step 7"):
        read_directory(folder)
    [commit] = import_all(repo, folder, prefix="ckpt")
    assert (commit.step, repo.restore()["w"].tolist()) == (7, [1, 1])


def test_shardings_over_several_devices_are_noted(repo, tmp_path, import_all):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    put = jax.device_put(np.arange(8.0, dtype=np.float32), sharding)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"a": jnp.ones(1), "b": put, "c": put + 1})
    [commit] = import_all(repo, tmp_path / "saved")
    [(text, ranges)] = commit.metadata["orbax"]["item"]["shardings"]
    assert json.loads(text)["partition_spec"] == ["x"]
    assert ranges == [[1, 3]]
    np.testing.assert_array_equal(repo.restore()["b"], np.arange(8.0))


def test_damage_is_named_and_what_is_whole_stays(run, repo, tmp_path, import_all):
    folder = tmp_path / "damaged"
    shutil.copytree(run, folder)
    [blob, *_] = sorted((folder / "2").rglob("d/*"), key=lambda path: -path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"2: leaf 'new' in .* cannot be read") as raised:
        import_all(repo, folder)
    assert raised.value.path == "new"
    assert [commit.step for commit in repo.log()] == [1]
    shutil.rmtree(folder / "2")
    assert [commit.step for commit in import_all(repo, folder)] == [3]


@pytest.mark.parametrize("missing", ["nowhere", "nothing"])
def test_what_is_not_orbaxs(missing, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FormatError, match=r"no folder|saved nothing"):
        read_directory(tmp_path / missing)
