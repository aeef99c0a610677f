"""Where Orbax fails its users: each of these is right here."""

import collections
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vcjax
from vcjax.errors import CorruptionError, PrunedError, StorageError

Pair = collections.namedtuple("Pair", ["left", "right"])


def manager(ours, folder, **options):
    options.setdefault("enable_async_checkpointing", False)
    return ours.CheckpointManager(folder, options=ours.CheckpointManagerOptions(**options))


def test_a_flipped_bit_is_found(ours, tmp_path):
    tree = {"big": np.random.default_rng(0).normal(size=30_000), "small": np.arange(500.0)}
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.StandardSave(tree))
    files = [
        path
        for folder in ("leaves", "packs")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file() and path.name != "zarr.json"
    ]
    draw = random.Random(0)
    for _ in range(20):
        path = draw.choice(files)
        data = bytearray(path.read_bytes())
        at = draw.randrange(len(data))
        data[at] ^= 1 << draw.randrange(8)
        good = path.read_bytes()
        path.write_bytes(bytes(data))
        with manager(ours, tmp_path) as made:
            for args in (None, ours.args.StandardRestore(tree)):
                with pytest.raises(CorruptionError, match=r"big|small"):
                    made.restore(0, args=args)
        path.write_bytes(good)
    with manager(ours, tmp_path) as made:
        np.testing.assert_array_equal(made.restore(0)["big"], tree["big"])


def test_keys_that_collide_in_orbax(ours, tmp_path):
    tree = {"a.b": np.ones(3), "a": {"b": np.zeros(3)}, "c/d": np.full(2, 5), "c": {"d": 6}}
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.StandardSave(tree))
        for args in (None, ours.args.StandardRestore(tree), ours.args.PyTreeRestore(tree)):
            restored = made.restore(0, args=args)
            assert jax.tree.structure(restored) == jax.tree.structure(tree)
            jax.tree.map(np.testing.assert_array_equal, restored, tree)


def test_leaves_that_orbax_refuses(ours, tmp_path):
    tree = {
        "empty": np.zeros((0, 3), np.float32),
        "empty_jax": jnp.zeros((2, 0)),
        "text": "grün",
        "bytes": b"\0\xff",
        "complex": np.array([1 + 2j]),
        "number": 1 - 1j,
        "scalar": np.float32(0.5),
        "bool": np.bool_(True),
        "nothing": None,
        "none": {},
    }
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.StandardSave(tree))
        for args in (None, ours.args.StandardRestore(tree), ours.args.PyTreeRestore()):
            restored = made.restore(0, args=args)
            assert jax.tree.structure(restored) == jax.tree.structure(tree)
            for name, value in tree.items():
                assert type(restored[name]) is type(value)
                if not isinstance(value, dict | None):
                    np.testing.assert_array_equal(restored[name], value)


def test_containers_keep_their_types(ours, tmp_path):
    tree = {1: (1.5, [np.ones(2)]), 2: Pair(np.zeros(1), ())}
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.PyTreeSave(tree))
        restored = made.restore(0)
        assert list(restored) == [1, 2]
        assert type(restored[1]) is tuple
        assert type(restored[1][1]) is list
        assert type(restored[2]) is Pair


def failing(leaves, known):
    raise StorageError("the disk is full", hint="free space")


def test_a_failed_save_is_not_listed(ours, tmp_path, monkeypatch):
    with manager(ours, tmp_path, enable_async_checkpointing=True, max_to_keep=2) as made:
        for step in range(2):
            made.save(step, args=ours.args.StandardSave({"w": np.full(9_000, step)}))
        made.wait_until_finished()
        with monkeypatch.context() as patch:
            patch.setattr(made.repo.objects, "write", failing)
            made.save(2, args=ours.args.StandardSave({"w": np.full(9_000, 2)}))
            with pytest.raises(StorageError, match="step 2, saved in the background, failed"):
                made.wait_until_finished()
        made.wait_until_finished()  # raised once
        made.check_for_errors()
        assert made.all_steps() == [0, 1]  # what was to go for it has stayed
        assert made.latest_step() == 1
        assert made.restore(None)["w"][0] == 1
        assert made.restore(0)["w"][0] == 0
        assert not (tmp_path / "2").exists()
        assert made.save(2, args=ours.args.StandardSave({"w": np.full(9_000, 2)}))
        assert made.all_steps() == [1, 2]


def test_a_failed_save_does_not_keep_others_from_being_restored(ours, tmp_path, monkeypatch):
    made = manager(ours, tmp_path, enable_async_checkpointing=True)
    made.save(0, args=ours.args.StandardSave({"w": np.zeros(9_000)}))
    made.wait_until_finished()
    with monkeypatch.context() as patch:
        patch.setattr(made.repo.objects, "write", failing)
        made.save(1, args=ours.args.StandardSave({"w": np.ones(9_000)}))
        assert not made.restore(None)["w"].any()
    with pytest.raises(StorageError):
        made.check_for_errors()
    made.close()


def test_a_failed_foreground_save_is_not_listed(ours, tmp_path, monkeypatch):
    with manager(ours, tmp_path) as made:
        with monkeypatch.context() as patch:
            patch.setattr(made.repo.objects, "write", failing)
            with pytest.raises(StorageError):
                made.save(0, args=ours.args.StandardSave({"w": np.zeros(9_000)}))
        assert made.all_steps() == []
        assert made.save(0, args=ours.args.StandardSave({"w": np.zeros(9_000)}))


def test_best_and_latest_are_kept(ours, tmp_path):
    options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 2}
    with manager(ours, tmp_path, **options) as made:
        for step, loss in enumerate([0.3, 0.1, 0.2, 0.9]):
            tree = {"w": np.full(9_000, step)}
            made.save(step, args=ours.args.StandardSave(tree), metrics={"loss": loss})
            assert made.latest_step() == step
        assert made.all_steps() == [1, 2, 3]
        assert made.best_step() == 1
        assert made.restore(None)["w"][0] == 3


def test_the_last_save_can_replace_a_step(ours, tmp_path):
    with manager(ours, tmp_path) as made:
        made.save(5, args=ours.args.StandardSave({"w": np.zeros(3)}), metrics={"loss": 2})
        tree = {"w": np.ones(3)}
        assert made.save(5, args=ours.args.StandardSave(tree), metrics={"loss": 1}, overwrite=True)
        assert made.all_steps() == [5]
        assert made.metrics(5) == {"loss": 1}
        assert made.restore(5)["w"][0] == 1
        assert made.repo.restore("HEAD~1")["w"][0] == 0  # nothing is lost
    with manager(ours, tmp_path, overwrite=True) as made:
        assert made.save(5, args=ours.args.StandardSave({"w": np.full(3, 2)}))
        assert made.restore(5)["w"][0] == 2


def test_nothing_is_left_behind_by_a_save_that_died(ours, tmp_path, monkeypatch):
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.StandardSave({"w": np.zeros(50_000)}))
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(made.repo.refs, "set", None)  # killed before the branch moves
            with pytest.raises(TypeError):
                made.save(1, args=ours.args.StandardSave({"w": np.ones(50_000)}))
        assert {path for path in tmp_path.rglob("*") if path.is_file()} > before
    again = manager(ours, tmp_path)
    assert again.all_steps() == [0]
    again.repo.gc(force=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert again.repo.fsck().ok


def test_what_did_not_change_costs_nothing(ours, tmp_path):
    frozen = np.random.default_rng(0).normal(size=100_000)
    sizes = []
    with manager(ours, tmp_path) as made:
        for step in range(4):
            tree = {"frozen": frozen, "head": np.full(100, step)}
            made.save(step, args=ours.args.StandardSave(tree))
            sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
    assert sizes[0] > frozen.nbytes
    assert sizes[-1] - sizes[0] < frozen.nbytes / 20


def test_restoring_takes_little_more_than_the_tree(ours, tmp_path):
    import tracemalloc

    tree = {f"w{i}": np.random.default_rng(i).normal(size=1 << 19) for i in range(8)}  # 32 MiB
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.StandardSave(tree))
        tracemalloc.start()
        try:
            restored = made.restore(0, args=ours.args.StandardRestore(tree))
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    size = sum(array.nbytes for array in tree.values())
    assert restored["w3"][0] == tree["w3"][0]
    assert now >= size * 0.9
    assert peak < size * 1.5


# -- retention is pruning ------------------------------------------------------


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


def test_a_policy_object_is_quoted(ours, tmp_path):
    policy = ours.checkpoint_managers.EveryNSteps(2)
    with manager(ours, tmp_path, preservation_policy=policy) as made:
        for step in range(1, 4):
            made.save(step, args=ours.args.StandardSave({"w": np.full(9_000, step)}))
        assert made.all_steps() == [2, 3]
        with pytest.raises(PrunedError, match=r"by EveryNSteps\(interval_steps=2"):
            made.restore(1)


def test_the_next_save_does_not_wait_for_pruning(ours, tmp_path, monkeypatch):
    import threading

    go, started = threading.Event(), threading.Event()
    with manager(ours, tmp_path, max_to_keep=1, enable_async_checkpointing=True) as made:
        prune = made.repo.prune

        def slow(*args):
            started.set()
            assert go.wait(30)
            return prune(*args)

        monkeypatch.setattr(made.repo, "prune", slow)
        for step in range(3):
            made.save(step, args=ours.args.StandardSave({"w": np.full(9_000, step)}))
        assert started.wait(30)
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
