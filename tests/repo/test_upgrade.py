"""Repositories of older versions of the disk format: read, written and upgraded."""

import json
import runpy
import zipfile
from pathlib import Path

import numpy as np
import pytest

import vcjax
from vcjax.errors import PrunedError, UnknownFormatError
from vcjax.hashing import checksum
from vcjax.repo.settings import READABLE

DATA = Path(__file__).parents[1] / "data"
MADE = runpy.run_path(str(DATA / "make.py"))


@pytest.fixture
def old(tmp_path):
    """The folder of a repository of version 1."""
    with zipfile.ZipFile(DATA / "repository_v1.zip") as archive:
        archive.extractall(tmp_path / "repo")
    return tmp_path / "repo"


def check_content(repo):
    for revision, step in MADE["CONTENT"].items():
        restored = repo.restore(revision)
        for path, expected in MADE["tree"](step).items():
            np.testing.assert_array_equal(restored[path], expected)
    with pytest.raises(PrunedError, match="the fixture"):
        repo.restore("main~2")
    assert repo.fsck().problems == []
    assert repo.kept_merges.targets() == ["refs/heads/main"]


def test_every_version_that_is_read_has_a_fixture_or_is_the_present_one():
    made = {path.stem for path in DATA.glob("repository_v*.zip")}
    assert made >= {f"repository_v{version}" for version in READABLE[:-1]}


def test_version_1_is_read_and_written(old):
    repo = vcjax.Repository.open(old)
    assert repo.settings.version == 1
    check_content(repo)
    repo.gc(unsafe=True)
    check_content(repo)
    commit = repo.commit({"w": 1}, "by a newer vcjax", branch="side")
    assert vcjax.Repository.open(old).resolve("side") == commit
    assert repo.fsck().problems == []


def test_upgrade(old, cli):
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    code, out, err = cli(f"--repo={old}", "upgrade", "--dry_run")
    assert code == 0, err
    assert "would write" in out
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    done = vcjax.Repository.open(old).upgrade()
    assert (done.before, done.after) == (1, 2)
    assert set(done.records) > {"refs/heads/main", "log/refs/heads/main@000000000001.json"}
    repo = vcjax.Repository.open(old)
    assert repo.settings.version == 2
    assert repo.settings.compress
    check_content(repo)
    for key in [*repo.store.keys("refs/"), *repo.store.keys("log/")]:
        name = key.removeprefix("log/").partition("@")[0]
        assert json.loads(repo.store.read(key) or b"")["name"] == name
    objects = [path for path in before if path.relative_to(old).parts[0] in ("leaves", "commits")]
    assert all(path.read_bytes() == before[path] for path in objects)
    assert repo.upgrade().records == ()
    code, out, _ = cli(f"--repo={old}", "upgrade")
    assert (code, "already" in out) == (0, True)


def test_a_writer_beside_an_upgrade_loses_nothing(old, monkeypatch):
    repo, writer = vcjax.Repository.open(old), vcjax.Repository.open(old)
    real, made = type(repo.store).compare_and_set, []

    def beside(store, key, value, expected):
        if store is repo.store and key == "refs/heads/side" and not made:
            made.append(writer.commit({"w": 1}, "meanwhile", branch="side"))
        return real(store, key, value, expected)

    monkeypatch.setattr(type(repo.store), "compare_and_set", beside)
    repo.upgrade()
    assert [repo.resolve("side")] == made
    assert vcjax.Repository.open(old).fsck().problems == []


def test_what_a_repository_needs_is_named(repo):
    path = repo.store.location.folder / "vcjax.json"
    body = json.loads(path.read_text()) | {"needs": ["gathered"]}
    path.write_text(json.dumps(body | {"check": checksum(body)}))
    with pytest.raises(UnknownFormatError, match="needs gathered"):
        vcjax.Repository.open(repo.url)
