"""`repair`: what follows from the rest is healed, what is lost is put aside and named."""

import json

import numpy as np
import pytest

import vcjax
from vcjax.errors import CorruptionError


def tree(step):
    big = np.arange(1_100_000, dtype=np.float32)
    big[0] = step
    return {"big": big, "small": np.full(300, step)}


@pytest.fixture
def repo(tmp_path):
    repo = vcjax.Repository.init(tmp_path / "repo")
    for step in range(2):
        repo.commit(tree(step), f"{step}")
    return repo


def only(repo, pattern):
    [path] = repo.store.location.folder.glob(pattern)
    return path


def test_metadata_within_a_difference(repo, cli_in):
    inner = only(repo, "leaves/*/*/difference/zarr.json")
    before = inner.read_bytes()
    for change in (lambda: inner.unlink(), lambda: inner.write_bytes(b"{}")):
        change()
        assert not repo.fsck().ok
        code, out, _ = cli_in(repo, "fsck", "--repair")
        assert code == 0
        assert "healed" in out
        assert inner.read_bytes() == before


def test_bytes_after_the_end_of_a_chunk(repo):
    chunk = sorted(repo.store.location.folder.glob("leaves/*/*/c/0"))[0]
    before = chunk.read_bytes()
    chunk.write_bytes(before + b"more")
    [problem] = repo.fsck().problems
    assert problem.object.endswith("/c/0")
    assert [key.rpartition("/c/")[2] for key in repo.repair().healed] == ["0"]
    assert chunk.read_bytes() == before
    assert repo.fsck().ok


def test_a_lost_head(repo):
    repo.store.delete(["HEAD"])
    assert vcjax.Repository.open(repo.url).repair().healed == ["HEAD"]
    assert repo.resolve("HEAD").message == "1"
    assert repo.fsck().ok


def test_a_damaged_object_is_put_aside_and_stored_anew(repo, cli_in):
    root = repo.store.location.folder
    entry = repo.manifest("main").leaves["small"]
    key = f"packs/{entry.packed.pack[:2]}/{entry.packed.pack}"
    (root / key / "c/0").write_bytes(b"garbage")
    damaged = repo.resolve("main").digest
    code, out, _ = cli_in(repo, "fsck", "--repair", "--json")
    assert code == 1
    document = json.loads(out)
    assert document["repaired"] == {"healed": [], "quarantined": {key: [damaged]}}
    assert (root / "quarantine" / key / "c/0").read_bytes() == b"garbage"
    assert not (root / key).exists()
    with pytest.raises(CorruptionError):
        repo.restore("main")
    fresh = vcjax.Repository.open(repo.url)
    np.testing.assert_array_equal(fresh.restore("main~1")["small"], tree(0)["small"])
    fresh.switch("main~1", detach=True)
    fresh.commit(tree(1), "the same again")
    np.testing.assert_array_equal(fresh.restore("main")["small"], tree(1)["small"])
    assert fresh.fsck().ok
    fresh.gc(unsafe=True)
    assert (root / "quarantine" / key / "c/0").exists()
