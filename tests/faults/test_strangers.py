"""Files of other programs, and symbolic links, in the folders of a repository."""

import os
import time

import numpy as np
import pytest

import vcjax
from vcjax.history.keys import FOLDERS, is_ours
from vcjax.storage import open_store

NAMES = [
    ".DS_Store",
    "main (conflicted copy)",
    ".nfs0000000000a1b2c3",
    "~$main",
    "main~",
    "desktop.ini@",
]


@pytest.fixture
def repo(tmp_path):
    repo = vcjax.Repository.init(tmp_path / "repo")
    for step in range(3):
        repo.commit({"w": np.full(20_000, step), "small": np.full(300, step)}, f"{step}")
    repo.tag("v1")
    return repo


def places(name):
    deep = ("refs/heads", "refs/tags", "log/refs/heads", "leaves/ab", "manifests/ab", "commits/ab")
    return [f"{folder}/{name}" for folder in (*FOLDERS, *deep)]


@pytest.mark.parametrize("name", NAMES)
def test_strangers_stop_nothing_and_are_noted(repo, name):
    root = repo.store.location.folder
    content = (root / "refs/heads/main").read_bytes() if name.startswith("main") else b"junk"
    added = places(name)
    for place in added:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (0.0, time.time() - 10**7))
    fresh = vcjax.Repository.open(repo.url)
    assert set(fresh.branches) == {"main"}
    assert set(fresh.tags) == {"v1"}
    report = fresh.fsck()
    assert {note.object for note in report.notes} == set(added)
    assert report.problems == []
    fresh.commit({"w": 1}, "next")
    fresh.gc()
    fresh.gc(unsafe=True)
    fresh.prune(["HEAD~2"], "a test")
    assert [commit.message for commit in fresh.log()] == ["next", "2", "1", "0"]
    assert fresh.fsck().problems == []
    assert all((root / place).exists() for place in added)


def test_a_copy_of_a_ref_is_none(repo):
    root = repo.store.location.folder
    copy = root / "refs/heads/main.sync-conflict-20260101-120000-ABCDEFG"
    copy.write_bytes((root / "refs/heads/main").read_bytes())
    fresh = vcjax.Repository.open(repo.url)
    assert set(fresh.branches) == {"main"}
    report = fresh.fsck()
    assert report.ok
    assert [note.object for note in report.notes] == [f"refs/heads/{copy.name}"]
    fresh.commit({"w": 1}, "next")
    fresh.gc(unsafe=True)
    assert copy.exists()


@pytest.mark.parametrize(
    "place", ["leaves/zz", "leaves/ab", "packs", "commits/aa", "refs/x", "log"]
)
def test_links_are_not_followed_where_things_are_deleted(repo, tmp_path, place):
    root = repo.store.location.folder
    other = vcjax.Repository.init(tmp_path / "other")
    other.commit({"w": np.full(20_000, 9), "small": np.full(300, 9)}, "of somebody else")
    outside = tmp_path / "other" / place.partition("/")[0]
    before = sorted(path for path in (tmp_path / "other").rglob("*") if path.is_file())
    for path in before:
        os.utime(path, (0.0, time.time() - 10**7))
    if (root / place).is_dir():
        (root / place).rename(tmp_path / "aside")
    (root / place).symlink_to(outside, target_is_directory=True)
    fresh = vcjax.Repository.open(repo.url)
    for collect in (fresh.gc, lambda: fresh.gc(unsafe=True)):
        try:
            collect()
        except vcjax.VcjaxError:
            assert place in ("packs", "log", "refs/x")  # what is live, or leads to it, is not there
    assert sorted(path for path in (tmp_path / "other").rglob("*") if path.is_file()) == before
    assert other.fsck().ok


def test_a_link_to_a_folder_above_is_an_error(tmp_path):
    store = open_store(tmp_path)
    store.write("a/b", b"")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert store.keys("", links=False) == ["a/b"]
    with pytest.raises(vcjax.errors.StorageError, match=r"cannot list|folders deep"):
        store.keys("")


def test_names_of_the_format(repo):
    """Whatever vcjax writes is called ours, or it would never be collected."""
    repo.switch("main", detach=True)
    repo.commit({"w": np.arange(3_000_000, dtype=np.float32)}, "large")
    repo.commit({"w": np.arange(3_000_000, dtype=np.float32).copy()}, "same")
    repo.prune(["HEAD~1"], "a test")
    keys = [key for key in repo.store.keys("") if not key.startswith(".")]
    assert [key for key in keys if not is_ours(key)] == []
