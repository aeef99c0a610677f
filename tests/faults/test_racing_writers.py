"""Writers at work at the same time: no commit is lost, and none is overwritten unseen."""

import itertools

import numpy as np
import pytest

import vcjax
from vcjax.errors import ConflictError
from vcjax.history import Manifest
from vcjax.history.manifest import manifest_key
from vcjax.tree import Node

RACING = """
    import sys
    import numpy as np
    import vcjax
    url, me, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    repo = vcjax.Repository.open(url)
    print("ready", flush=True)
    sys.stdin.readline()
    tree = repo.restore()
    for i in range(20):
        while True:
            if mode == "same":
                tree = repo.restore()
                tree["shared"] = np.full(300, me * 100 + i, np.float32)
            else:
                tree[str(me)] = np.full(300, i, np.float32)
            try:
                commit = repo.commit(tree, f"{me} {i}")
            except vcjax.ConflictError as error:
                assert error.paths == ("shared",), error
                continue
            break
        print(commit.digest, flush=True)
"""


def race(processes, repo, mode):
    """Four processes commit twenty times each; the digests acknowledged to each."""
    children = [processes.python(RACING, repo.url, me, mode) for me in range(4)]
    for child in children:
        assert child.read_line() == "ready"
    for child in children:
        child.write_line("go")
    return [child.finish()[0].split() for child in children]


def test_four_processes_change_their_own_leaves(repo, processes):
    repo.commit({str(me): np.zeros(300, np.float32) for me in range(4)}, "base")
    acknowledged = race(processes, repo, "own")
    assert [len(mine) for mine in acknowledged] == [20] * 4
    fresh = vcjax.Repository.open(repo.url)
    log = list(fresh.log())
    assert len(log) == 81
    assert {commit.digest for commit in log}.issuperset(itertools.chain(*acknowledged))
    assert {name: value[0] for name, value in fresh.restore().items()} == {
        str(me): 19.0 for me in range(4)
    }
    for me, mine in enumerate(acknowledged):
        for i, name in enumerate(mine):
            assert fresh.restore(name)[str(me)][0] == i
    assert fresh.fsck().ok


def test_four_processes_change_one_leaf(repo, processes):
    repo.commit({"shared": np.full(300, -1, np.float32)}, "base")
    acknowledged = race(processes, repo, "same")
    fresh = vcjax.Repository.open(repo.url)
    log = [commit.digest for commit in fresh.log()]
    assert len(log) == 81
    assert set(log).issuperset(itertools.chain(*acknowledged))
    for me, mine in enumerate(acknowledged):
        assert [log.index(name) for name in mine] == sorted(map(log.index, mine), reverse=True)
        for i, name in enumerate(mine):
            assert fresh.restore(name)["shared"][0] == me * 100 + i
    assert fresh.fsck().ok


def test_stale_writer_conflicts(repo):
    """Whoever restored before somebody else's commit may not overwrite it unseen."""
    repo.commit({"a": 1, "b": 1}, "base")
    one, other = (vcjax.Repository.open(repo.url) for _ in range(2))
    one.restore()
    other.restore()
    first = one.commit({"a": 2, "b": 1}, "one")
    with pytest.raises(ConflictError) as caught:
        other.commit({"a": 3, "b": 1}, "other")
    assert caught.value.paths == ("a",)
    assert repo.resolve("main").digest == first.digest
    second = other.commit({"a": 1, "b": 5}, "another leaf")
    assert repo.restore("main") == {"a": 2, "b": 5}
    assert second.parents == (first.digest,)


def test_what_others_commit_during_a_restore_is_not_undone(repo, monkeypatch):
    """A writer has seen what it restored, not what the branch was at afterwards."""
    repo.commit({"a": 1, "b": 1}, "base")
    writer, other = (vcjax.Repository.open(repo.url) for _ in range(2))
    real = writer.objects.read

    def slow(*arguments, **options):
        yield from real(*arguments, **options)
        other.commit({"a": 2, "b": 1}, "meanwhile")

    monkeypatch.setattr(writer.objects, "read", slow)
    assert writer.restore() == {"a": 1, "b": 1}
    monkeypatch.undo()
    writer.commit({"a": 1, "b": 3}, "mine")
    assert repo.restore() == {"a": 2, "b": 3}


def test_lost_response_is_told_from_a_lost_race(processes, repo, monkeypatch):
    """S3 may carry out a write and lose the answer: our nonce in the ref tells."""
    real = type(repo.store).compare_and_set
    lost = []

    def unlucky(store, key, value, expected):
        done = real(store, key, value, expected)
        if key.startswith("refs/") and not lost:
            lost.append(key)
            return False
        return done

    monkeypatch.setattr(type(repo.store), "compare_and_set", unlucky)
    commit = repo.commit({"w": 1}, "once")
    assert lost == ["refs/heads/main"]
    assert [c.digest for c in repo.log()] == [commit.digest]


def test_gc_spares_a_commit_in_progress(repo):
    """Objects younger than the grace window are spared, whether anything refers to them or not."""
    repo.commit({"w": np.ones(20_000)}, "base")
    manifest = Manifest(repo.manifest().root)
    loose = repo.history.write_manifest(Manifest(Node("list", (0,), (manifest.root,))))
    plan = repo.gc()
    assert (plan.commits, plan.manifests, plan.objects) == ((), (), ())
    assert repo.store.exists(manifest_key(loose.digest))
