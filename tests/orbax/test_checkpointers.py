"""Checkpointers: what is saved to a path, by Orbax and by ours alike."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

import vcjax
import vcjax.history
from vcjax.errors import RepositoryExistsError, StorageError, StructureError

from ..subprocesses import PATIENCE

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),  # of Orbax
]

TREE = {"w": np.arange(6.0).reshape(2, 3), "b": {"x": jnp.ones(3)}}


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_standard(ocp, tmp_path):
    path = tmp_path / "runs" / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, TREE, custom_metadata={"by": "me"})
        checkpointer.wait_until_finished()
        checkpointer.check_for_errors()
        assert path.exists()
        assert_same(checkpointer.restore(path, TREE), TREE)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)
        assert_same(checkpointer.restore(path, abstract), TREE)
        metadata = checkpointer.metadata(path)
        assert metadata.item_metadata["w"].shape == (2, 3)
        assert metadata.custom_metadata == {"by": "me"}
        assert metadata.item_handlers.endswith("StandardCheckpointHandler")
        with pytest.raises(ValueError, match="exists"):
            checkpointer.save(path, TREE)
        checkpointer.save(path, {"w": np.zeros(2)}, force=True)
        checkpointer.wait_until_finished()
        assert_same(checkpointer.restore(path), {"w": np.zeros(2)})
        with pytest.raises(FileNotFoundError):
            checkpointer.restore(tmp_path / "nothing")
        with pytest.raises(ValueError, match=r"match|fit"):
            checkpointer.restore(path, {"w": np.zeros(3), "c": np.zeros(1)})


def test_pytree(ocp, tmp_path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", TREE)
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), TREE)
    restored = checkpointer.restore(tmp_path / "a", restore_args=args)
    assert type(restored["b"]["x"]) is np.ndarray
    part = {"w": TREE["w"]}
    keep = jax.tree.map(lambda _: ocp.RestoreArgs(), part)
    restored = checkpointer.restore(tmp_path / "a", item=part, restore_args=keep, transforms={})
    assert_same(restored, part)
    checkpointer.save(tmp_path / "a", {"n": np.ones(1)}, force=True)
    assert_same(checkpointer.restore(tmp_path / "a"), {"n": np.ones(1)})


@pytest.mark.parametrize("kind", ["Checkpointer", "AsyncCheckpointer"])
def test_handlers(ocp, tmp_path, kind):
    with getattr(ocp, kind)(ocp.JsonCheckpointHandler()) as checkpointer:
        assert isinstance(checkpointer.handler, ocp.JsonCheckpointHandler)
        checkpointer.save(tmp_path / "j", args=ocp.args.JsonSave({"a": 1}))
        assert checkpointer.restore(tmp_path / "j") == {"a": 1}
    with getattr(ocp, kind)(ocp.CompositeCheckpointHandler("t", "j")) as checkpointer:
        args = ocp.args.Composite(t=ocp.args.StandardSave(TREE), j=ocp.args.JsonSave([1]))
        checkpointer.save(tmp_path / "c", args=args)
        if kind == "AsyncCheckpointer":
            checkpointer.wait_until_finished()
        restored = checkpointer.restore(
            tmp_path / "c", args=ocp.args.Composite(t=ocp.args.StandardRestore(TREE))
        )
        assert_same(restored.t, TREE)
        assert checkpointer.restore(tmp_path / "c").j == [1]


def test_a_steps_path_can_be_restored_from(ocp, tmp_path):
    """As MaxText reads parameters from the directory of a run."""
    args = ocp.args
    with ocp.CheckpointManager(tmp_path / "run", item_names=("items", "meta")) as manager:
        for step in (5, 100):
            state = args.PyTreeSave({"w": np.full(3, step)})
            manager.save(step, args=args.Composite(items=state, meta=args.JsonSave({"s": step})))
    path = tmp_path / "run" / str(100) / "items"
    assert path.exists()
    restored = ocp.PyTreeCheckpointer().restore(path)
    np.testing.assert_array_equal(restored["w"], [100, 100, 100])
    metadata = ocp.PyTreeCheckpointer().metadata(path)
    assert metadata.item_metadata["w"].shape == (3,)
    composite = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    given = args.Composite(meta=args.JsonRestore())
    assert composite.restore(path.parent, args=given).meta == {"s": 100}
    run = tmp_path / "run"
    for missing in (run / "100" / "other", run / "7", run / "7" / "items", tmp_path / "elsewhere"):
        with pytest.raises(FileNotFoundError):
            ocp.PyTreeCheckpointer().restore(missing)


# -- ours alone ----------------------------------------------------------------


def test_a_path_is_a_repository(ours, tmp_path):
    with ours.StandardCheckpointer() as checkpointer:
        for value in range(3):
            checkpointer.save(tmp_path / "state", {"w": np.full(3, value)}, force=True)
    repo = vcjax.Repository.open(tmp_path / "state")
    assert [repo.restore(f"HEAD~{back}")["w"][0] for back in range(3)] == [2, 1, 0]


def test_what_orbax_saved_is_restored(ours, tmp_path):
    with orbax.checkpoint.StandardCheckpointer() as theirs:
        theirs.save(tmp_path / "old", TREE)
    with ours.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "old", TREE), TREE)
        assert checkpointer.metadata(tmp_path / "old").item_metadata["w"].shape == (2, 3)
        with pytest.raises(RepositoryExistsError, match="not deleted"):
            checkpointer.save(tmp_path / "old", TREE, force=True)


def test_a_misfit_names_both_shapes(ours, tmp_path):
    with ours.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", TREE)
        with pytest.raises(StructureError, match=r"w: stored float64\[2,3\].*\[3,2\]"):
            checkpointer.restore(tmp_path / "state", {**TREE, "w": np.zeros((3, 2))})


def test_any_thread_may_wait(ours, tmp_path, monkeypatch, waiting):
    go, write = threading.Event(), vcjax.history.History.write

    def slowly(*arguments):
        assert go.wait(PATIENCE)
        return write(*arguments)

    def failing(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(vcjax.history.History, "write", slowly)
    with ours.StandardCheckpointer() as checkpointer, ThreadPoolExecutor(4) as executor:
        checkpointer.save(tmp_path / "x", {"w": np.zeros(3)})
        waiters = [executor.submit(checkpointer.wait_until_finished) for _ in range(4)]
        for _ in waiters:
            assert waiting.acquire(timeout=PATIENCE)
        assert not any(waiter.done() for waiter in waiters)
        go.set()
        assert [waiter.result(PATIENCE) for waiter in waiters] == [None] * 4
        checkpointer.wait_until_finished()
        monkeypatch.setattr(vcjax.history.History, "write", failing)
        checkpointer.save(tmp_path / "y", {"w": np.zeros(3)})
        waiters = [executor.submit(checkpointer.wait_until_finished) for _ in range(4)]
        assert {type(waiter.exception(PATIENCE)) for waiter in waiters} == {StorageError}
        with pytest.raises(StorageError):
            checkpointer.wait_until_finished()
        checkpointer.wait_until_finished()


def test_an_error_in_the_background_is_raised_once(ours, tmp_path, monkeypatch):
    from vcjax.objects import ObjectStore

    def full(self, leaves, known):
        raise StorageError("the disk is full")

    checkpointer = ours.StandardCheckpointer()
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write", full)
        checkpointer.save(tmp_path / "state", TREE)
        with pytest.raises(StorageError):
            checkpointer.wait_until_finished()
    checkpointer.wait_until_finished()
    checkpointer.save(tmp_path / "state", TREE)  # nothing was saved there
    assert_same(checkpointer.restore(tmp_path / "state"), TREE)
    checkpointer.close()
