"""docs/format.md holds: a commit's digests follow from the page with msgpack and blake3 alone.

Everything between the two lines below is a second implementation of the page's
"Identity" and "Manifests" sections. It imports nothing of vcjax and no NumPy.
"""

import array
import collections
import json
import struct
from pathlib import Path

import blake3
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

import vcjax

pytestmark = pytest.mark.smoke

# ---------------------------------------------------------------- derivation

SIZES = {
    "bool": 1,
    "int4": 1,
    "uint8": 1,
    "uint32": 4,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
}


def digest(data):
    return blake3.blake3(data).digest()


def canonical(value):
    def ordered(value):
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value, key=lambda k: k.encode())}
        return [ordered(part) for part in value] if isinstance(value, list) else value

    return msgpack.packb(ordered(value), use_bin_type=True)


def product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result


def grid(shape, itemsize):
    """(chunk shape, byte ranges of the chunks) by the rules of the page."""
    if not shape:
        return [], [(0, itemsize)]
    limit = 4 * 1024 * 1024
    axis = 0
    for candidate in range(len(shape)):
        if itemsize * product(shape[candidate + 1 :]) <= limit:
            axis = candidate
            break
    parts = max(1, -(-itemsize * product(shape[axis:]) // limit))
    rows = max(1, -(-shape[axis] // parts))
    chunk = [1] * axis + [rows] + [max(1, length) for length in shape[axis + 1 :]]
    row = itemsize * product(shape[axis + 1 :])
    ranges = []
    if product(shape):
        for block in range(product(shape[:axis])):
            start = block * row * shape[axis]
            for first in range(0, shape[axis], rows):
                last = min(first + rows, shape[axis])
                ranges.append((start + first * row, start + last * row))
    return chunk, ranges


def array_leaf(dtype, shape, content):
    """(leaf digest, chunk digests) of an array's canonical bytes."""
    itemsize = SIZES["uint32" if dtype.startswith("key<") else dtype]
    assert len(content) == itemsize * product(shape)
    chunk, ranges = grid(shape, itemsize)
    chunks = [digest(content[start:stop]) for start, stop in ranges]
    return digest(canonical(["vcjax.leaf.1", dtype, shape, chunk, chunks])), chunks


def value_leaf(dtype, stored):
    return digest(canonical(["vcjax.value.1", dtype, stored]))


def node(kind, keys, children, name=""):
    return digest(canonical(["vcjax.node.1", kind, name, keys, children]))


def stored_chunks(folder):
    """The canonical bytes in an uncompressed leaf object: chunk files less padding and CRC."""
    header = json.loads((folder / "zarr.json").read_text())
    assert [codec["name"] for codec in header["codecs"]] == ["bytes", "crc32c"]
    attributes = header["attributes"]["vcjax"]
    shape = header["shape"]
    chunk = header["chunk_grid"]["configuration"]["chunk_shape"]
    itemsize = SIZES[header["data_type"]]
    expected, ranges = grid(shape, itemsize)
    assert chunk == expected
    counts = [-(-length // rows) for length, rows in zip(shape, chunk, strict=True)]
    content = b""
    for number, (start, stop) in enumerate(ranges):
        index, rest = [], number
        for count in reversed(counts):
            rest, position = divmod(rest, count)
            index.insert(0, str(position))
        data = (folder / "c" / "/".join(index)).read_bytes()
        assert len(data) == itemsize * product(chunk) + 4
        content += data[: stop - start]
    return attributes, content


def leaf_content(root, entry):
    """The canonical bytes of an array leaf, from wherever the manifest says it lies."""
    if "inline" in entry:
        return entry["inline"]
    if "pack" in entry:
        pack, offset, length = entry["pack"]
        name = pack.hex()
        _, content = stored_chunks(root / "packs" / name[:2] / name)
        assert array_leaf("uint8", [len(content)], content)[0] == pack
        return content[offset : offset + length]
    name = entry["digest"].hex()
    attributes, content = stored_chunks(root / "leaves" / name[:2] / name)
    assert attributes["digest"] == name
    return content


def derived(root, fields):
    """Digest of a manifest's node from what is stored, checking every digest on the way."""
    if "children" not in fields:
        if fields["home"] == "python":
            result = value_leaf(fields["dtype"], fields["inline"])
        else:
            content = leaf_content(root, fields)
            result, chunks = array_leaf(fields["dtype"], fields["shape"], content)
            if len(chunks) > 1:
                assert fields["chunks"] == b"".join(chunks)
            else:
                assert "chunks" not in fields
    else:
        children = [derived(root, child) for child in fields["children"]]
        keys = fields.get("keys", list(range(len(children))))
        result = node(fields["kind"], keys, children, fields.get("name", ""))
    assert result == fields["digest"]
    return result


def read_object(root, kind, name):
    data = (root / f"{kind}s" / name[:2] / f"{name}.msgpack").read_bytes()
    assert digest(data).hex() == name
    fields = msgpack.unpackb(data)
    assert fields["format"] == f"vcjax.{kind}.1"
    assert canonical(fields) == data
    return fields


def checksum(body):
    rest = {key: value for key, value in body.items() if key != "check"}
    return digest(canonical(["vcjax.check.1", rest])).hex()[:16]


# ------------------------------------------------------- end of the derivation

Point = collections.namedtuple("Point", "x y")


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    tree = {
        "chunked": np.arange(1_500_000, dtype=np.float32).reshape(1500, 1000),
        "deep": np.arange(3 * 1_100_000, dtype=np.float32).reshape(3, 1_100_000),
        "packed": np.arange(1000, dtype=np.float64),
        "packed too": jnp.arange(200, dtype=jnp.float32),
        "inline": np.array([1.5, -0.0], np.float32),
        "nibbles": np.array([-8, 7], "int4"),
        "mask": np.array([True, False]),
        "scalar": np.float64(2.5),
        "empty": np.zeros((3, 0), np.float32),
        "z": np.array([1 + 2j], np.complex64),
        "int": -26,
        "big": 10**40,
        "float": 0.1,
        "complex": 1 - 2j,
        "str": "naïve",
        "bytes": b"\x00\xff",
        "bool": True,
        "none": None,
        "key": jax.random.key(7, impl="threefry2x32"),
        "nested": [(1, {}), {"a/b": "%", "": [None]}],
        "point": Point(1.0, np.float32(2)),
    }
    folder = tmp_path_factory.mktemp("spec") / "repo"
    repo = vcjax.Repository.init(folder)
    commit = repo.commit(tree, "first", metadata={"step": 3, "a": [1]}, metrics={"loss": 0.5})
    return repo, folder, commit


def expected_root():
    """The digest of the tree above from its values alone, not from what is stored."""
    numbers = array.array("f", range(3 * 1_100_000)).tobytes()
    leaf = lambda *args: array_leaf(*args)[0]  # noqa: E731
    point = f"{__name__}:Point"
    children = {
        "chunked": leaf("float32", [1500, 1000], numbers[:6_000_000]),
        "deep": leaf("float32", [3, 1_100_000], numbers),
        "packed": leaf("float64", [1000], struct.pack("<1000d", *range(1000))),
        "packed too": leaf("float32", [200], numbers[:800]),
        "inline": leaf("float32", [2], bytes.fromhex("0000c03f00000080")),
        "nibbles": leaf("int4", [2], bytes.fromhex("f807")),
        "mask": leaf("bool", [2], b"\x01\x00"),
        "scalar": leaf("float64", [], struct.pack("<d", 2.5)),
        "empty": leaf("float32", [3, 0], b""),
        "z": leaf("complex64", [1], struct.pack("<2f", 1, 2)),
        "int": value_leaf("int", "-1a"),
        "big": value_leaf("int", f"{10**40:x}"),
        "float": value_leaf("float", 0.1),
        "complex": value_leaf("complex", [1.0, -2.0]),
        "str": value_leaf("str", "naïve"),
        "bytes": value_leaf("bytes", b"\x00\xff"),
        "bool": value_leaf("bool", True),
        "none": node("none", [], []),
        "key": leaf("key<threefry2x32>", [2], struct.pack("<2I", 0, 7)),
        "nested": node(
            "list",
            [0, 1],
            [
                node("tuple", [0, 1], [value_leaf("int", "1"), node("dict", [], [])]),
                node(
                    "dict",
                    ["", "a/b"],
                    [node("list", [0], [node("none", [], [])]), value_leaf("str", "%")],
                ),
            ],
        ),
        "point": node(
            "namedtuple",
            ["x", "y"],
            [value_leaf("float", 1.0), leaf("float32", [], struct.pack("<f", 2))],
            point,
        ),
    }
    names = sorted(children)
    return node("dict", names, [children[name] for name in names])


def test_tree_digest_follows_from_the_values(committed):
    _, _, commit = committed
    assert commit.tree == expected_root().hex()


def test_every_digest_follows_from_what_is_stored(committed):
    _, folder, commit = committed
    fields = read_object(folder, "commit", commit.digest)
    manifest = read_object(folder, "manifest", fields["manifest"].hex())
    assert set(manifest) == {"format", "root"}
    assert derived(folder, manifest["root"]) == fields["tree"]


def test_manifest_says_where_each_leaf_lies(committed):
    _, folder, commit = committed
    fields = read_object(folder, "commit", commit.digest)
    root = read_object(folder, "manifest", fields["manifest"].hex())["root"]
    entries = dict(zip(root["keys"], root["children"], strict=True))
    places = {
        name: next((p for p in ("inline", "pack") if p in entry), "object")
        for name, entry in entries.items()
        if "children" not in entry
    }
    assert {n for n, p in places.items() if p == "object"} == {"chunked", "deep"}
    assert {n for n, p in places.items() if p == "pack"} == {"packed", "packed too"}
    assert entries["packed"]["pack"][1:] == [0, 8000]
    assert entries["packed too"]["pack"][1:] == [8000, 800]
    assert len(entries["chunked"]["chunks"]) == 2 * 32
    assert len(entries["deep"]["chunks"]) == 3 * 2 * 32
    assert entries["key"]["home"] == "jax"
    assert entries["scalar"]["home"] == "scalar"


def test_commit_fields(committed):
    _, folder, commit = committed
    fields = read_object(folder, "commit", commit.digest)
    assert sorted(fields) == COMMIT.split()
    assert fields["parents"] == []
    assert fields["metadata"] == {"step": 3, "a": [1]}
    assert fields["metrics"] == {"loss": 0.5}
    assert (fields["generation"], fields["leaves"]) == (1, 22)


def test_records_carry_their_checksum(committed):
    _, folder, commit = committed
    ref = json.loads((folder / "refs/heads/main").read_text())
    assert ref["commit"] == commit.digest
    assert set(ref) == {"name", "commit", "sequence", "time", "reason", "nonce", "check"}
    head = json.loads((folder / "HEAD").read_text())
    assert head["ref"] == "refs/heads/main"
    settings = json.loads((folder / "vcjax.json").read_text())
    assert settings["format"] == 2
    assert settings["needs"] == []
    for body in (ref, head, settings):
        assert body["check"] == checksum(body)


def test_array_headers_carry_their_checksum(committed):
    _, folder, _ = committed
    headers = sorted(folder.glob("*/*/*/zarr.json"))
    assert len(headers) == 3
    for path in headers:
        header = json.loads(path.read_text())
        attributes = header.pop("attributes")["vcjax"]
        assert attributes["check"] == checksum({**header, **attributes})


def test_merges_and_their_provenance_are_canonical(tmp_path):
    repo = vcjax.Repository.init(tmp_path / "repo")
    repo.commit({"a": 1, "b": 1}, "base")
    repo.branch("other")
    repo.commit({"a": 2, "b": 1}, "ours")
    repo.commit({"a": 1, "b": 2}, "theirs", branch="other")
    merged = repo.merge("main", "other", metadata={"z": {"y": 1, "x": 2}, "a": 0})
    fields = read_object(tmp_path / "repo", "commit", merged.digest)
    assert fields["provenance"]["operation"] == "merge"
    assert [parent.hex() for parent in fields["parents"]] == list(merged.parents)


def test_the_page_names_every_field():
    """A field that the page does not name is a field that a second implementation lacks."""
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    for word in WORDS.split():
        assert word in page, word


COMMIT = """
    author format generation leaves manifest message metadata metrics nbytes parents
    provenance time tree
"""

WORDS = """
    vcjax.leaf.1 vcjax.value.1 vcjax.node.1 vcjax.check.1 vcjax.manifest.1 vcjax.commit.1
    `chunks` `digest` `dtype` `home` `inline` `pack` `shape` `variable` `kind` `keys`
    `name` `children` `manifest` `tree` `parents` `author` `time` `message` `metadata`
    `metrics` `provenance` `generation` `leaves` `nbytes` `commit` `sequence` `reason`
    `nonce` `restores` `check` `ref` `update` `written` `relied` `deleting` `policy`
    `compress` `format` `settings` `base` `own` `depth` `array` `bases` `parts` `parameters`
    `members` `group` `package` vcjax.group.1
"""
