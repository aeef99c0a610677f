"""Collecting: by the store's clock, sparing what is in use, and all that can die elsewhere."""

import os
import secrets
import time

import numpy as np
import pytest

import vcjax
from vcjax.errors import CorruptionError
from vcjax.history import Manifest
from vcjax.history.collection import Collecting
from vcjax.history.commit import commit_key
from vcjax.history.manifest import manifest_key
from vcjax.objects import plan_gc, sweep
from vcjax.objects.layout import COMMIT_SECONDS, GRACE_SECONDS
from vcjax.storage import Store
from vcjax.storage.tensorstore_internals import TEMPORARY
from vcjax.tree import Node


def tree(value):
    return {"w": np.full(20_000, value), "small": np.full(300, value)}


@pytest.fixture
def clock(monkeypatch):
    """Moves the clock of all stores."""
    real = Store.now
    ahead = [0.0]
    monkeypatch.setattr(Store, "now", lambda store: real(store) + ahead[0])

    def move(seconds):
        ahead[0] += seconds

    return move


def loose(repo, value=7):
    """A commit that nothing leads to: its branch and all of its log are gone."""
    commit = repo.commit(tree(value), "loose", branch="loose")
    keys = repo.store.keys("log/refs/heads/loose@")
    repo.store.delete(["refs/heads/loose", *keys])
    return commit


def test_force_spares_a_commit_in_progress(url, clock):
    repo = vcjax.Repository.init(url)
    repo.commit(tree(0), "kept")
    commit = loose(repo)
    assert repo.gc(force=True).commits == ()
    clock(COMMIT_SECONDS + 1)
    assert repo.gc().commits == ()
    assert repo.gc(force=True).commits == (commit.digest,)
    assert repo.fsck().ok


def test_unsafe_spares_nothing(repo, cli_in):
    repo.commit(tree(0), "kept")
    commit = loose(repo)
    code, out, _ = cli_in(repo, "gc", "--unsafe")
    assert code == 0
    assert commit.digest in out
    assert "Nothing was spared for its age" in out


def test_the_clock_of_this_machine_does_not_count(repo, monkeypatch):
    repo.commit(tree(0), "kept")
    loose(repo)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    plan = repo.gc()
    assert (plan.commits, plan.manifests, plan.objects) == ((), (), ())


def test_all_that_can_die_dies_where_no_ages_are_told(clock):
    """Manifests, torn objects and notes of merges, from when they were first found unused."""
    repo = vcjax.Repository.init(f"memory://{secrets.token_hex(8)}")
    repo.commit(tree(0), "kept")
    kept = set(repo.store.keys())
    root = repo.manifest().root
    repo.history.write_manifest(Manifest(Node("list", (0,), (root,))))
    repo.store.write(f"leaves/ab/ab{'0' * 62}/c/0", b"of a killed writer")
    repo.store.write(f"merging/{'1' * 64}.msgpack", b"of a killed merge")
    assert repo.gc().objects == ()
    clock(GRACE_SECONDS / 2)
    assert repo.gc().objects == ()
    clock(GRACE_SECONDS)
    plan = repo.gc()
    assert (len(plan.manifests), len(plan.objects), len(plan.leftovers)) == (1, 1, 1)
    repo.gc()
    assert set(repo.store.keys()) - kept <= {"collecting/unused.json"}


@pytest.mark.parametrize("part", ["manifest", "commit"])
def test_a_torn_commit_is_passed_over(repo, part):
    repo.commit(tree(0), "kept")
    commit = loose(repo)
    manifest = repo.manifest(commit)
    keys = {"manifest": manifest_key(commit.manifest), "commit": commit_key(commit.digest)}
    repo.store.delete([keys[part]])
    fresh = vcjax.Repository.open(repo.url)
    assert fresh.fsck().ok
    fresh.gc()
    fresh.gc(unsafe=True)
    assert not fresh.store.exists(keys["manifest"])
    assert not fresh.store.exists(keys["commit"])
    assert manifest.leaves


def test_a_torn_live_commit_stops_all(repo):
    repo.commit(tree(0), "kept")
    repo.store.delete([manifest_key(repo.resolve("HEAD").manifest)])
    with pytest.raises(CorruptionError):
        vcjax.Repository.open(repo.url).gc()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_of_a_dead_tree_beside_a_collector(url, when, monkeypatch):
    """Its manifest is about to be deleted: it is spared, or written anew."""
    repo = vcjax.Repository.init(url)
    repo.commit(tree(0), "kept")
    loose(repo)
    plan = plan_gc(repo.refs, repo.history, repo.prunings, repo.objects, float("-inf"))
    assert plan.manifests
    writer = vcjax.Repository.open(url)
    if when == "before":
        writer.commit(tree(7), "again")
    sweep(plan, repo.refs, repo.history, repo.prunings, repo.objects)
    if when == "after":
        writer.commit(tree(7), "again")
    fresh = vcjax.Repository.open(url)
    assert fresh.fsck().ok
    assert fresh.restore()["w"][0] == 7


def test_a_writer_waits_for_a_collector_that_names_its_manifest(repo):
    collecting = Collecting(repo.store)
    with collecting.announced(["manifests/x"]):
        assert collecting._are_announced(frozenset(["manifests/x"]))
        assert not collecting.wait_for(["manifests/y"])
    assert not collecting.wait_for(["manifests/x"])
    assert repo.store.keys("collecting/") == []


def test_a_collector_that_was_killed_holds_nobody_for_long(repo, clock):
    with pytest.raises(KeyboardInterrupt), Collecting(repo.store).announced(["manifests/x"]):
        raise KeyboardInterrupt
    clock(COMMIT_SECONDS + 1)
    assert not Collecting(repo.store).wait_for(["manifests/x"])
    assert len(repo.gc(force=True).leftovers) == 1
    assert repo.store.keys("collecting/") == []


def test_temporary_files_go_from_every_folder(repo):
    repo.commit(tree(0), "kept")
    root = repo.store.location.folder
    old = time.time() - 2 * 86400
    names = [f"{folder}/x{TEMPORARY}" for folder in ("leaves/ab", "refs/heads", "log", "merges")]
    names += [f"HEAD{TEMPORARY}", f"vcjax.json{TEMPORARY}", f"pruned/{'a' * 64}{TEMPORARY}"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"left behind")
        os.utime(root / name, (old, old))
    (root / "mine").mkdir()
    (root / "mine" / f"draft{TEMPORARY}").write_bytes(b"of the user")
    os.utime(root / "mine" / f"draft{TEMPORARY}", (old, old))
    assert sorted(repo.gc().leftovers) == sorted(names)
    assert not any((root / name).exists() for name in names)
    assert (root / "mine" / f"draft{TEMPORARY}").exists()
    assert repo.fsck().ok
