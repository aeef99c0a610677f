"""What no writer of ours makes: manifests, commits, depths and names meant to do harm."""

import resource

import blake3
import msgpack
import numpy as np
import pytest

import vcjax
from vcjax.errors import CorruptionError, UnknownFormatError
from vcjax.history.commit import commit_key
from vcjax.history.manifest import manifest_key

from .stored import same


def digest(data):
    return blake3.blake3(data).hexdigest()


def packed(value) -> bytes:
    data = msgpack.packb(value)
    assert data is not None
    return data


def plant(repo, manifest):
    """Stores handmade manifest bytes under their right digest, and a commit with them."""
    name = digest(manifest)
    repo.store.write(manifest_key(name), manifest)
    fields = msgpack.unpackb(repo.store.read(commit_key(repo.resolve("HEAD").digest)))
    fields["manifest"] = bytes.fromhex(name)
    data = packed(dict(sorted(fields.items())))
    repo.store.write(commit_key(digest(data)), data)
    return digest(data)


def packed_node(depth):
    """A manifest `depth` levels deep, made without recursion."""
    head = packed({"children": [None], "digest": bytes(32), "kind": "list"})
    before, after = head.split(b"\xc0", 1)
    leaf = packed(
        {"digest": bytes(32), "dtype": "int", "home": "python", "inline": "1", "shape": []}
    )
    prefix = b"\x82" + packed("format") + packed("vcjax.manifest.1")
    return prefix + packed("root") + before * depth + leaf + after * depth


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
    return packed({"format": "vcjax.manifest.1", "root": root})


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
    + packed("format")
    + packed("vcjax.manifest.1")
    + packed("root")
    + b"\x84"
    + b"".join(map(packed, ("children", [entry()], "digest", b"", "kind", "dict", "keys")))
    + b"\x91"
    + (b"\x81" + packed("tuple") + b"\x91") * 480
    + b"\x01",
    "no map": packed([1, 2]),
    "no root": packed({"format": "vcjax.manifest.1"}),
    "root of text": manifest_of("root"),
    "a later version": packed({"format": "vcjax.manifest.2", "root": entry()}),
    "a commit": packed({"format": "vcjax.commit.1", "root": entry()}),
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
    data = packed({**fields, **change})
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
