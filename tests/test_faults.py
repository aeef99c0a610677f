"""Damage, full disks, killed and racing processes: never silently wrong, nothing lost."""

import dataclasses
import errno
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import blake3
import msgpack
import numpy as np
import pytest

import vcjax
from vcjax.errors import (
    ConflictError,
    CorruptionError,
    MissingObjectError,
    StorageError,
    UnknownFormatError,
)
from vcjax.history import Manifest
from vcjax.history.commit import commit_key
from vcjax.history.manifest import manifest_key
from vcjax.objects.arrays import ArrayHeader
from vcjax.tree import Node

ROOT = Path(vcjax.__file__).parents[1]


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params/odd": {"big": rng.normal(size=20_000), "small": rng.normal(size=500)},
        "tiny": rng.normal(size=4),
        "step": 7 + seed,
    }


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return np.array_equal(one, other)


@pytest.fixture
def damaged(tmp_path):
    """A repository with two commits, a tag and a log; its folder; its trees by revision."""
    folder = tmp_path / "repo"
    repo = vcjax.Repository.init(folder)
    repo.commit(tree(0), "first")
    repo.tag("v1")
    repo.commit(tree(1), "second")
    return folder, {"main~1": tree(0), "main": tree(1)}


def files(folder, kind):
    patterns = {
        "chunk": "leaves/*/*/c/*",
        "header": "leaves/*/*/zarr.json",
        "pack": "packs/*/*/c/*",
        "pack header": "packs/*/*/zarr.json",
        "manifest": "manifests/*/*",
        "commit": "commits/*/*",
        "ref": "refs/heads/*",
        "tag": "refs/tags/*",
        "log": "log/refs/heads/*",
        "HEAD": "HEAD",
        "settings": "vcjax.json",
    }
    return sorted(path for path in folder.glob(patterns[kind]) if path.is_file())


KINDS = ["chunk", "header", "pack", "pack header", "manifest", "commit"]
KINDS += ["ref", "tag", "log", "HEAD", "settings"]


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


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_repository_version(repo, version):
    (repo.store.location.folder / "vcjax.json").write_text(json.dumps({"format": version}))
    with pytest.raises(UnknownFormatError, match="format version"):
        vcjax.Repository.open(repo.url)


def digest(data):
    return blake3.blake3(data).hexdigest()


def plant(repo, manifest):
    """Stores handmade manifest bytes under their right digest, and a commit with them."""
    name = digest(manifest)
    repo.store.write(manifest_key(name), manifest)
    fields = msgpack.unpackb(repo.store.read(commit_key(repo.resolve("HEAD").digest)))
    fields["manifest"] = bytes.fromhex(name)
    data = msgpack.packb(dict(sorted(fields.items())))
    repo.store.write(commit_key(digest(data)), data)
    return digest(data)


def packed_node(depth):
    """A manifest `depth` levels deep, made without recursion."""
    head = msgpack.packb({"children": [None], "digest": bytes(32), "kind": "list"})
    before, after = head.split(b"\xc0", 1)
    leaf = msgpack.packb(
        {"digest": bytes(32), "dtype": "int", "home": "python", "inline": "1", "shape": []}
    )
    prefix = b"\x82" + msgpack.packb("format") + msgpack.packb("vcjax.manifest.1")
    return prefix + msgpack.packb("root") + before * depth + leaf + after * depth


def entry(**changes):
    fields = {
        "digest": bytes(32),
        "dtype": "float32",
        "home": "numpy",
        "shape": [4],
        "inline": bytes(16),
    }
    fields.update(changes)
    return {key: value for key, value in sorted(fields.items()) if value is not None}


def manifest_of(root):
    return msgpack.packb({"format": "vcjax.manifest.1", "root": root})


HUGE = [2**30, 2**30]
BAD_MANIFESTS = {
    "10,000 levels": packed_node(10_000),
    "300 levels": packed_node(300),
    "129 levels": packed_node(129),
    "2^60 elements inline": manifest_of(entry(shape=HUGE)),
    "2^60 elements as object": manifest_of(entry(shape=HUGE, inline=None)),
    "2^60 elements, one chunk": manifest_of(entry(shape=HUGE, inline=None, chunks=bytes(32))),
    "2^60 elements in a pack": manifest_of(
        entry(shape=HUGE, inline=None, pack=[bytes(32), 0, 2000])
    ),
    "2^60 bytes in a pack": manifest_of(
        entry(shape=HUGE, dtype="int8", inline=None, pack=[bytes(32), 0, 2**60])
    ),
    "negative shape": manifest_of(entry(shape=[-4])),
    "shape of text": manifest_of(entry(shape="4")),
    "negative offset": manifest_of(entry(inline=None, pack=[bytes(32), -16, 16])),
    "inline text": manifest_of(entry(inline="x" * 16)),
    "unknown dtype": manifest_of(entry(dtype="float7")),
    "value elsewhere": manifest_of(entry(home="python", dtype="int", shape=[], inline=None)),
    "value of another type": manifest_of(entry(home="python", dtype="int", shape=[], inline=[1])),
    "value of no type": manifest_of(entry(home="python", dtype="code", shape=[], inline="1")),
    "value with a wrong digest": manifest_of(
        entry(home="python", dtype="int", shape=[], inline="1")
    ),
    "unknown kind": manifest_of({"children": [], "digest": bytes(32), "keys": [], "kind": "x"}),
    "more keys": manifest_of({"children": [], "digest": b"", "keys": ["a"], "kind": "dict"}),
    "strange key": manifest_of(
        {"children": [entry()], "digest": b"", "keys": [[1]], "kind": "dict"}
    ),
    "equal keys": manifest_of(
        {"children": [entry(), entry()], "digest": b"", "keys": ["a", "a"], "kind": "dict"}
    ),
    "deep key": b"\x82"
    + msgpack.packb("format")
    + msgpack.packb("vcjax.manifest.1")
    + msgpack.packb("root")
    + b"\x84"
    + b"".join(map(msgpack.packb, ("children", [entry()], "digest", b"", "kind", "dict", "keys")))
    + b"\x91"
    + (b"\x81" + msgpack.packb("tuple") + b"\x91") * 480
    + b"\x01",
    "no map": msgpack.packb([1, 2]),
    "no root": msgpack.packb({"format": "vcjax.manifest.1"}),
    "root of text": manifest_of("root"),
    "a later version": msgpack.packb({"format": "vcjax.manifest.2", "root": entry()}),
    "a commit": msgpack.packb({"format": "vcjax.commit.1", "root": entry()}),
    "no MessagePack": b"\xc1" * 40,
    "trailing bytes": manifest_of(entry()) + b"\x00",
    "a bomb of lists": b"\xdd\xff\xff\xff\xff" * 20,
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_handmade_manifests_are_refused(repo, name):
    repo.commit({"w": 1}, "good")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    commit = plant(repo, BAD_MANIFESTS[name])
    with pytest.raises((CorruptionError, UnknownFormatError, vcjax.errors.TreeError)):
        repo.restore(commit)
    repo.refs.move("refs/heads/main", commit, "test", force=True)
    assert not repo.fsck().ok
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 1024, f"{grown} KiB more memory"


@pytest.mark.parametrize(
    "change",
    [
        {"time": 2**62},
        {"time": "now"},
        {"parents": ["x"]},
        {"parents": None},
        {"metadata": [1]},
        {"metrics": None},
        {"author": 1},
        {"manifest": "x"},
        {"generation": None},
        {"provenance": 3},
        {"format": "vcjax.commit.9"},
    ],
    ids=str,
)
def test_handmade_commits_are_refused(repo, change):
    repo.commit({"w": 1}, "good")
    fields = msgpack.unpackb(repo.store.read(commit_key(repo.resolve("HEAD").digest)))
    data = msgpack.packb({**fields, **change})
    repo.store.write(commit_key(digest(data)), data)
    with pytest.raises((CorruptionError, UnknownFormatError)):
        repo.restore(digest(data))


def test_trees_too_deep_are_refused(repo):
    deep = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(vcjax.errors.TreeError, match="128 levels"):
        repo.commit(deep, "deep")
    deep = 1
    for _ in range(128):
        deep = [deep]
    repo.commit(deep, "just not too deep")
    assert repo.restore() == deep


NAMES = [
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/../../b",
    "nul\0byte",
    "new\nline",
    "x" * 5000,
    "\udcff",
    "naïve ☃",
    "C:\\x",
    "%2F",
    "a%2Fb",
    "a/b",
    "~",
    "*",
]


def test_leaf_names_are_only_names(repo, tmp_path):
    leaves = {name: np.full(300, i, np.float32) for i, name in enumerate(NAMES)}
    big = {name: np.full(20_000, i, np.float32) for i, name in enumerate(NAMES)}
    before = {
        path for path in tmp_path.rglob("*") if repo.store.location.folder not in path.parents
    }
    repo.commit({"small": leaves, "big": big}, "names")
    restored = repo.restore()
    assert same(restored, {"small": leaves, "big": big})
    assert len(repo.manifest().leaves) == 2 * len(NAMES)
    after = {path for path in tmp_path.rglob("*") if repo.store.location.folder not in path.parents}
    assert after == before
    stored = repo.store.keys()
    for path in stored:
        assert not any(part in ("", ".", "..") or len(part) > 255 for part in path.split("/"))
    assert same(repo.restore(paths="small/..%2F..%2Fx"), {"small": {"../../x": leaves["../../x"]}})
    assert repo.fsck().ok


def run(code, *arguments, **options):
    """Runs some Python with vcjax and these sources importable."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


FULL = """
    import resource, signal, sys
    import numpy as np
    import vcjax
    repo = vcjax.Repository.open(sys.argv[1])
    # Starts the threads: their semaphores are files to the kernel, too.
    vcjax.Repository.init("memory://warm").commit({"w": np.ones(100_000)}, "warm")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        repo.commit({"w": np.ones(100_000), "v": np.ones(2000)}, "too large")
    except vcjax.errors.StorageError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("limit", [0, 100, 1000, 20_000, 500_000])
def test_a_file_that_cannot_grow(repo, limit):
    """RLIMIT_FSIZE makes writes fail half-way with EFBIG, wherever a commit is by then."""
    kept = repo.commit({"w": np.zeros(100_000)}, "kept")
    child = run(FULL, repo.url, limit)
    out, err = child.communicate(timeout=60)
    assert out.startswith("refused:"), err
    assert child.returncode == 0
    fresh = vcjax.Repository.open(repo.url)
    assert fresh.resolve("HEAD").digest == kept.digest
    assert fresh.fsck().ok
    fresh.commit({"w": np.ones(100_000)}, "works again")
    assert fresh.fsck().ok


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk):
    repo = vcjax.Repository.init(small_disk / "repo")
    kept = repo.commit({"w": np.arange(1000.0)}, "kept")
    with pytest.raises(StorageError) as caught:
        repo.commit({"w": np.arange(400_000.0)}, "too large")
    assert "disk is full" in caught.value.hint
    assert "No space left" in str(caught.value)
    fresh = vcjax.Repository.open(small_disk / "repo")
    assert fresh.resolve("HEAD").digest == kept.digest
    assert fresh.fsck().ok
    fresh.gc(force=True)
    fresh.commit({"w": np.arange(100_000.0)}, "fits")
    assert fresh.fsck().ok


def fill(descriptor):
    while True:
        os.write(descriptor, bytes(4096))


def test_a_disk_that_fills_up_to_the_last_byte(small_disk):
    """Each write of a commit fails once: as little as the ref may not fit any more."""
    repo = vcjax.Repository.init(small_disk / "repo")
    acknowledged = []
    filler = small_disk / "filler"
    for blocks in range(20):
        filler.unlink(missing_ok=True)
        descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            fill(descriptor)
        os.close(descriptor)
        os.truncate(filler, max(0, filler.stat().st_size - 4096 * blocks))
        try:
            commit = repo.commit({"w": np.full(500, blocks, np.float32)}, str(blocks))
        except StorageError:
            continue
        acknowledged.append(commit.digest)
    filler.unlink()
    fresh = vcjax.Repository.open(small_disk / "repo")
    assert 0 < len(acknowledged) < 20
    assert fresh.resolve("HEAD").digest == acknowledged[-1]
    assert [commit.digest for commit in fresh.log()] == acknowledged[::-1]
    assert fresh.fsck().ok


READ_ONLY = """
    import os, sys
    import vcjax
    folder = sys.argv[1]
    vcjax.Repository.open(folder).restore()  # loads what an unprivileged process may not
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    repo = vcjax.Repository.open(folder)
    assert repo.restore() == {"w": 1}
    assert [commit.message for commit in repo.log()] == ["kept"]
    for action in (
        lambda: repo.commit({"w": 2}, ""),
        lambda: repo.commit({"w": 2}, "", branch="new"),
        lambda: repo.branch("x"),
        lambda: repo.tag("x"),
        lambda: repo.undo(),
        lambda: repo.switch("main"),
    ):
        try:
            action()
        except vcjax.errors.StorageError as error:
            assert error.hint, error
        else:
            sys.exit("was not refused")
    assert repo.restore() == {"w": 1}
    assert repo.fsck().ok
    print("ok")
"""


def test_a_read_only_folder():
    """Reading works, and every change is refused with a hint."""
    with tempfile.TemporaryDirectory() as name:
        repo = vcjax.Repository.init(Path(name) / "repo")
        repo.commit({"w": 1}, "kept")
        paths = [Path(name), *Path(name).rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            out, err = run(READ_ONLY, repo.url, cwd="/").communicate(timeout=60)
        finally:
            for path in paths:
                path.chmod(0o755 if path.is_dir() else 0o644)
    assert out == "ok\n", err


KILLED = """
    import os, sys
    import numpy as np
    import vcjax
    import vcjax.tree.flattening, vcjax.repo.committing, vcjax.repo.restoring
    import vcjax.merging.threeway

    def work(seed):
        repo = vcjax.Repository.open(sys.argv[1])
        step = 0
        while True:
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
    for seed in range(50):
        sys.stdin.readline()
        child = os.fork()
        if child == 0:
            work(seed)
        os.write(1, f"{child}\\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\\n")
"""


def test_killed_at_fifty_random_points(repo):
    """HEAD and every acknowledged commit are intact, and the next commit works."""
    rng = random.Random(1)
    parent = run(KILLED, repo.url, stdin=subprocess.PIPE)
    acknowledged = []
    for _ in range(50):
        parent.stdin.write("go\n")
        parent.stdin.flush()
        first = parent.stdout.readline()
        assert first, parent.stderr.read()
        for _ in range(rng.randrange(3)):
            line = parent.stdout.readline()
            assert line != "dead\n", parent.communicate(timeout=60)[1]
            acknowledged += [line.strip()]
        time.sleep(rng.uniform(0, 0.1))  # the random point
        try:
            os.kill(int(first), signal.SIGKILL)
        except ProcessLookupError:
            pytest.fail(f"it died of itself: {parent.communicate(timeout=60)[1]}")
        while (line := parent.stdout.readline()) != "dead\n":
            assert line, parent.stderr.read()
            acknowledged.append(line.strip())
        fresh = vcjax.Repository.open(repo.url)
        if acknowledged:
            reachable = {commit.digest for commit in fresh.log()}
            assert reachable.issuperset(acknowledged)
            fresh.restore("HEAD")
    parent.communicate(timeout=60)
    assert len(acknowledged) > 20
    fresh = vcjax.Repository.open(repo.url)
    report = fresh.fsck()
    assert report.ok, report.problems
    for name in acknowledged:
        restored = fresh.restore(name)
        seed, step = map(int, fresh.resolve(name).message.split())
        assert restored["step"] == step
        assert (restored["big"] == seed * 1000 + step).all()
    fresh.commit({"next": 1}, "works")
    fresh.gc(force=True)
    assert fresh.fsck().ok
    assert not fresh.store.leftovers("leaves")


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


def race(repo, mode):
    """Four processes commit twenty times each; the digests acknowledged to each."""
    children = [run(RACING, repo.url, me, mode, stdin=subprocess.PIPE) for me in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [child.communicate(timeout=120) for child in children]
    for (_, err), child in zip(results, children, strict=True):
        assert child.returncode == 0, err
    return [out.split() for out, _ in results]


def test_four_processes_change_their_own_leaves(repo):
    repo.commit({str(me): np.zeros(300, np.float32) for me in range(4)}, "base")
    acknowledged = race(repo, "own")
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


def test_four_processes_change_one_leaf(repo):
    repo.commit({"shared": np.full(300, -1, np.float32)}, "base")
    acknowledged = race(repo, "same")
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
    plan = repo.gc(force=True)
    assert (len(plan.commits), len(plan.manifests), len(plan.objects)) == (1, 1, 1)
    assert repo.fsck().ok
    assert repo.gc(dry_run=True, force=True).objects == ()


def test_lost_response_is_told_from_a_lost_race(repo, monkeypatch):
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


@pytest.mark.parametrize("kind", ["chunk", "header", "pack", "pack header", "manifest", "ref"])
def test_what_a_killed_writer_left_is_not_mixed_in(tmp_path, kind):
    """TensorStore does not cut off the temporary file that it finds."""
    other = vcjax.Repository.init(tmp_path / "other")
    other.commit(tree(3), "the same leaves")
    repo = vcjax.Repository.init(tmp_path / "repo")
    for path in files(tmp_path / "other", kind):
        stale = tmp_path / "repo" / path.relative_to(tmp_path / "other")
        stale.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{stale}.__lock").write_bytes(path.read_bytes() + b"of a killed writer")
    repo.commit(tree(3), "now")
    assert same(vcjax.Repository.open(repo.url).restore(), tree(3))
    assert repo.fsck().ok
    assert repo.store.leftovers("") == []
