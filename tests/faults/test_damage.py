"""Damaged, missing and exchanged files: found, named, and never silently wrong data."""

import json
import random

import numpy as np
import pytest

import vcjax
from vcjax.errors import CorruptionError, MissingObjectError, UnknownFormatError

from .stored import KINDS, files, same, tree


@pytest.fixture
def damaged(tmp_path):
    """A repository with two commits, a tag and a log; its folder; its trees by revision."""
    folder = tmp_path / "repo"
    repo = vcjax.Repository.init(folder)
    repo.commit(tree(0), "first")
    repo.tag("v1")
    repo.commit(tree(1), "second")
    return folder, {"main~1": tree(0), "main": tree(1)}


def check_damage(folder, trees):
    """Every restore is right or raises CorruptionError; `fsck`, or opening, tells of it."""
    try:
        repo = vcjax.Repository.open(folder)
    except CorruptionError:
        return []
    problems = []
    for revision, expected in [*trees.items(), ("HEAD", trees["main"]), ("v1", trees["main~1"])]:
        try:
            restored = repo.restore(revision)
        except CorruptionError as error:
            problems.append(error)
        else:
            assert same(restored, expected), f"silently wrong data at {revision}"
    assert not repo.fsck().ok
    return problems


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found(damaged, kind):
    folder, trees = damaged
    assert vcjax.Repository.open(folder).fsck().ok
    rng = random.Random(kind)
    for path in files(folder, kind):
        data = path.read_bytes()
        for _ in range(12):
            bit = rng.randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            check_damage(folder, trees)
        path.write_bytes(data)
    assert vcjax.Repository.open(folder).fsck().ok


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["missing", "empty", "half", "longer"])
def test_missing_and_truncated_files_are_found(damaged, kind, how):
    folder, trees = damaged
    if kind == "settings" and how == "missing":
        (folder / "vcjax.json").unlink()
        with pytest.raises(vcjax.errors.RepositoryNotFoundError):
            vcjax.Repository.open(folder)
        return
    path = files(folder, kind)[0]
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "longer": data + b"x"}[how])
    if kind in ("chunk", "pack") and how == "longer":
        # TensorStore reads as many bytes as a chunk has; what follows them is never seen.
        repo = vcjax.Repository.open(folder)
        assert all(same(repo.restore(revision), expected) for revision, expected in trees.items())
        return
    if kind in ("ref", "tag", "log") and how == "missing":
        # Nothing else says that a ref was there, or how far its log went back.
        repo = vcjax.Repository.open(folder)
        assert same(repo.restore(repo.resolve("v1" if kind != "tag" else "main~1")), tree(0))
        return
    check_damage(folder, trees)


def test_damage_is_named(damaged):
    """The error says which leaf and which object."""
    folder, _ = damaged
    repo = vcjax.Repository.open(folder)
    entry = repo.manifest("main").leaves["params%2Fodd/big"]
    chunk = folder / "leaves" / entry.digest[:2] / entry.digest / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9] + bytes(9))
    with pytest.raises(CorruptionError, match=entry.digest) as caught:
        repo.restore("main")
    assert caught.value.path == "params%2Fodd/big"
    assert "params%2Fodd/big" in str(caught.value)
    assert caught.value.hint
    report = repo.fsck()
    assert [problem.object for problem in report.problems] == [
        f"leaf 'params%2Fodd/big' of commit {repo.resolve('main').digest[:8]}"
    ]
    chunk.unlink()
    with pytest.raises(MissingObjectError, match="params%2Fodd/big"):
        repo.restore("main")
    assert same(repo.restore("main", paths="tiny"), {"tiny": tree(1)["tiny"]})


def test_wrong_content_with_a_right_checksum_is_found(damaged):
    """zarr's crc32c holds, the digest does not: somebody wrote other content there."""
    folder, _ = damaged
    repo = vcjax.Repository.open(folder)
    one, other = (
        folder / "leaves" / entry.digest[:2] / entry.digest / "c" / "0"
        for entry in (repo.manifest(rev).leaves["params%2Fodd/big"] for rev in ("main", "main~1"))
    )
    one.write_bytes(other.read_bytes())
    with pytest.raises(CorruptionError, match="does not have its digest"):
        repo.restore("main")
    assert not same(repo.restore("main", verify=False), tree(1))
    assert not repo.fsck().ok


def test_each_place_of_a_leaf_is_checked(repo):
    """A leaf that lies in two packs may be damaged in the second."""
    shared = np.arange(600.0)
    repo.commit({"w": shared}, "one")
    root = repo.store.location.folder
    before = set(root.glob("packs/*/*"))
    repo.switch("other", create=True)
    repo.commit({"x": 1}, "")
    repo.commit({"w": shared, "v": np.arange(900.0)}, "two")
    [pack] = set(root.glob("packs/*/*")) - before
    chunk = pack / "c" / "0"
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    found = {problem.object.split(" of ")[0] for problem in repo.fsck().problems}
    assert found == {"leaf 'w'", "leaf 'v'"}
    np.testing.assert_array_equal(repo.restore("main")["w"], shared)


@pytest.mark.parametrize("version", [0, 3, "1", True, None])
def test_unknown_repository_version(repo, version):
    (repo.store.location.folder / "vcjax.json").write_text(json.dumps({"format": version}))
    with pytest.raises(UnknownFormatError, match="format version"):
        vcjax.Repository.open(repo.url)
