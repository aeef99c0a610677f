"""Where Orbax fails its users: each of these is right here."""

import collections
import random
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax.errors import CorruptionError, StorageError
from vcjax.storage import Store

from ..subprocesses import PATIENCE

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


def test_every_waiting_thread_is_told_of_a_failure(ours, tmp_path, monkeypatch):
    """As in Orbax only the thread that saves takes it off the manager."""
    made = manager(ours, tmp_path, enable_async_checkpointing=True)
    with ThreadPoolExecutor(2) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(made.repo.objects, "write", failing)
            made.save(0, args=ours.args.StandardSave({"w": np.zeros(9_000)}))
            waiters = [executor.submit(made.wait_until_finished) for _ in range(4)]
            for waiter in waiters:
                assert isinstance(waiter.exception(PATIENCE), StorageError)
        with pytest.raises(StorageError):
            made.wait_until_finished()
        assert executor.submit(made.wait_until_finished).exception(PATIENCE) is None
        # A save that is not made because of it is told by whatever thread.
        with monkeypatch.context() as patch:
            patch.setattr(made.repo.objects, "write", failing)
            made.save(0, args=ours.args.StandardSave({"w": np.zeros(9_000)}))
            failed = executor.submit(made.save, 1, {"w": 1}).exception(PATIENCE)
            assert "step 1 was not saved" in str(failed)
        assert executor.submit(made.save, 1, {"w": 1}).result(PATIENCE)
    made.close()
    assert made.all_steps() == [1]


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


def test_a_save_that_takes_too_long_is_an_error(ours, tmp_path, monkeypatch):
    go = threading.Event()
    options = {"async_options": ours.options.AsyncOptions(timeout_secs=0.2)}
    made = manager(ours, tmp_path, enable_async_checkpointing=True, **options)
    write = made.repo.objects.write

    def slow(leaves, known):
        assert go.wait(PATIENCE)
        return write(leaves, known)

    monkeypatch.setattr(made.repo.objects, "write", slow)
    made.save(0, args=ours.args.StandardSave({"w": np.zeros(9_000)}))
    assert made.is_saving_in_progress()
    with pytest.raises(TimeoutError, match=r"step 0 is not on disk after 0\.2 seconds"):
        made.wait_until_finished()
    go.set()
    made.close()
    assert made.all_steps() == [0]
    assert not made.is_saving_in_progress()


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
    again.repo.gc(unsafe=True)
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


def test_leftovers_of_killed_saves_can_be_cleaned_up(ours, tmp_path, monkeypatch):
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.StandardSave({"w": np.zeros(50_000)}))
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(made.repo.refs, "set", None)
            with pytest.raises(TypeError):
                made.save(1, args=ours.args.StandardSave({"w": np.ones(50_000)}))
    with manager(ours, tmp_path, cleanup_tmp_directories=True):  # too young to be sure
        assert {path for path in tmp_path.rglob("*") if path.is_file()} > before
    clock = Store.now
    monkeypatch.setattr(Store, "now", lambda store: clock(store) + 48 * 3600)
    with manager(ours, tmp_path, cleanup_tmp_directories=True) as made:
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not made.restore(0)["w"].any()


def test_a_folder_that_cannot_be_made_is_no_failure(ours, tmp_path):
    (tmp_path / "0").write_text("in the way")
    with manager(ours, tmp_path) as made:
        assert made.save(0, args=ours.args.StandardSave({"w": np.zeros(3)}))
        made.save(1, args=ours.args.StandardSave({"w": np.zeros(3)}))
        (tmp_path / "1" / "default" / "mine").write_text("of the user")
        made.save(2, args=ours.args.StandardSave({"w": np.zeros(3)}))
        made.delete(1)
        made.delete(0)
        assert made.all_steps() == [2]
    assert (tmp_path / "1" / "default" / "mine").exists()


def test_a_repository_in_memory(ours):
    url = f"memory://{secrets.token_hex(8)}"
    with manager(ours, url, max_to_keep=1) as made:
        for step in range(3):
            made.save(step, args=ours.args.StandardSave({"w": np.full(3, step)}))
        assert made.directory == url
    with manager(ours, url) as made:
        assert made.all_steps() == [2]
        assert made.restore(None)["w"][0] == 2
