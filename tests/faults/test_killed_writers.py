"""Writers and collectors that die half-way: what they leave does no harm."""

import dataclasses
import random
import time
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

import vcjax
from vcjax.objects.header import ArrayHeader
from vcjax.storage.tensorstore_internals import TEMPORARY

from .stored import files, same, tree

KILLED = """
    import os, signal, sys
    import numpy as np
    import vcjax
    import vcjax.tree.flattening, vcjax.repo.commit, vcjax.repo.restore
    import vcjax.threeway.plan

    def work(seed, last, seconds):
        repo = vcjax.Repository.open(sys.argv[1])
        step = 0
        while True:
            if step == last:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            tree = {
                "big": np.full(20_000, seed * 1000 + step, np.float32),
                "small": np.full(400, step, np.float32),
                "frozen": np.arange(50_000, dtype=np.float32),
                "step": step,
            }
            commit = repo.commit(tree, f"{seed} {step}", metadata={"step": step})
            os.write(1, f"{commit.digest}\\n".encode())
            step += 1

    # Everything is imported and no thread runs yet, so that forking is safe and fast.
    for seed, line in enumerate(sys.stdin):
        last, seconds = line.split()
        child = os.fork()
        if child == 0:
            work(seed, int(last), float(seconds))
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM, status
        os.write(1, b"killed\\n")
"""


def digests(repo):
    return (commit.digest for commit in repo.log())


def test_killed_at_fifty_random_points(repo, processes):
    """HEAD and every acknowledged commit are intact, and the next commit works.

    The kernel ends each writer as SIGKILL does, by a timer that runs from a commit's start.
    """
    rng = random.Random(1)
    parent = processes.python(KILLED, repo.url)
    acknowledged, reachable = [], set()
    for _ in range(50):
        parent.write_line(f"{rng.randrange(3)} {rng.uniform(1e-6, 0.1)}")
        while (line := parent.read_line()) != "killed":
            acknowledged.append(line)
        if acknowledged:
            fresh = vcjax.Repository.open(repo.url)
            # Below what was found before nothing is new: commits do not change.
            reachable.update(takewhile(lambda name: name not in reachable, digests(fresh)))
            assert reachable.issuperset(acknowledged)
            fresh.restore("HEAD")
    parent.finish()
    assert len(acknowledged) > 20
    fresh = vcjax.Repository.open(repo.url)
    assert set(digests(fresh)) == reachable
    report = fresh.fsck()
    assert report.ok, report.problems
    for name in acknowledged:
        restored = fresh.restore(name)
        seed, step = map(int, fresh.resolve(name).message.split())
        assert restored["step"] == step
        assert (restored["big"] == seed * 1000 + step).all()
    fresh.commit({"next": 1}, "works")
    fresh.gc(unsafe=True)
    assert fresh.fsck().ok
    assert not fresh.store.leftovers("leaves")


def test_a_crash_before_the_ref_moves_leaves_no_trace(repo, monkeypatch):
    repo.commit({"w": np.zeros(20_000)}, "kept")

    def crash(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(type(repo.store), "compare_and_set", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        repo.commit({"w": np.ones(20_000)}, "lost")
    monkeypatch.undo()
    assert [commit.message for commit in repo.log()] == ["kept"]
    assert repo.fsck().ok
    assert len(repo.gc(dry_run=True).commits) == 0
    plan = repo.gc(unsafe=True)
    assert (len(plan.commits), len(plan.manifests), len(plan.objects)) == (1, 1, 1)
    assert repo.fsck().ok
    assert repo.gc(dry_run=True, unsafe=True).objects == ()


def test_interrupted_deletion_is_taken_over(repo, monkeypatch):
    """A collector died after marking a leaf object: a writer stores the leaf anew."""
    commit = repo.commit({"w": np.arange(20_000.0)}, "one")
    leaf = repo.manifest(commit).leaves["w"].digest
    key = f"leaves/{leaf[:2]}/{leaf}"
    repo.commit({"w": 1}, "two")
    header = ArrayHeader.decode(key, repo.store.read(f"{key}/zarr.json"))
    marked = dataclasses.replace(header, deleting=True, written=time.time() - 3600)
    repo.store.write(f"{key}/zarr.json", marked.encode())
    (repo.store.location.folder / key / "c" / "0").unlink()
    repo.commit({"w": np.arange(20_000.0)}, "three")
    np.testing.assert_array_equal(repo.restore()["w"], np.arange(20_000.0))
    assert repo.fsck().ok


@pytest.mark.parametrize("kind", ["chunk", "header", "pack", "pack header", "manifest", "ref"])
def test_what_a_killed_writer_left_is_not_mixed_in(tmp_path, kind):
    """TensorStore does not cut off the temporary file that it finds."""
    other = vcjax.Repository.init(tmp_path / "other")
    other.commit(tree(3), "the same leaves")
    repo = vcjax.Repository.init(tmp_path / "repo")
    for path in files(tmp_path / "other", kind):
        stale = tmp_path / "repo" / path.relative_to(tmp_path / "other")
        stale.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{stale}{TEMPORARY}").write_bytes(path.read_bytes() + b"of a killed writer")
    repo.commit(tree(3), "now")
    assert same(vcjax.Repository.open(repo.url).restore(), tree(3))
    assert repo.fsck().ok
    assert repo.store.leftovers("") == []
