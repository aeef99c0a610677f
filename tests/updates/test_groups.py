"""Updates of a user's own: relative to two leaves, and two leaves stored together."""

import doctest
import json
import secrets

import blake3
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import vcjax
from vcjax import updates
from vcjax.errors import CorruptionError, MissingObjectError, UnknownFormatError, UpdateError
from vcjax.hashing import checksum, regions
from vcjax.objects import ObjectStore, StagedLeaf, Wanted
from vcjax.objects.header import read_headers, read_needed
from vcjax.objects.layout import leaf_key
from vcjax.tree import canonical, storage_dtype

from ..subprocesses import environment

LARGE = (6, 1 << 19)  # of float32: 2 MiB a row, chunks of two rows


def floats(seed, shape=LARGE, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def integers(seed, shape=LARGE):
    return np.random.default_rng(seed).integers(-9, 9, shape, np.int32)


def entries_of(repo, *names, revision="HEAD"):
    leaves = repo.manifest(revision).leaves
    return [leaves[name] for name in names]


def objects_in(repo, folder):
    return {"/".join(key.split("/")[:3]) for key in repo.store.keys(f"{folder}/")}


@pytest.fixture
def averaged(repo, example):
    """Two leaves in one commit, and in the next their near-average, stored by it."""
    first, second = floats(1), floats(2)
    near = (first + second) / 2
    near[3] += 1
    repo.commit({"first": first, "second": second}, "bases")
    repo.objects.write_update(
        "average", entries_of(repo, "first", "second"), [StagedLeaf.of(jnp.asarray(near))]
    )
    repo.commit({"near": near}, "near")
    return repo, near


@pytest.fixture
def paired(repo, example):
    """Two leaves of integers that are stored together."""
    tree = {"w": integers(1), "v": integers(2)}
    repo.objects.write_update("pair", [], [StagedLeaf.of(tree["w"]), StagedLeaf.of(tree["v"])])
    repo.commit(tree, "pair")
    return repo, tree


def header_of(repo, name, revision="HEAD"):
    [entry] = entries_of(repo, name, revision=revision)
    [header] = read_headers(repo.store, [leaf_key(entry.digest)])
    assert header is not None
    return header


def test_a_leaf_relative_to_two_others(averaged):
    repo, near = averaged
    header = header_of(repo, "near")
    assert header.relation is not None
    assert (header.update, header.depth) == ("average", 1)
    assert [base.digest for base in header.relation.bases] == [
        entry.digest for entry in entries_of(repo, "first", "second", revision="HEAD~1")
    ]
    assert header.relation.package == "example-updates 1.5"
    np.testing.assert_array_equal(repo.restore()["near"], near)
    assert not repo.store.keys("groups/")
    assert repo.fsck().ok


def test_two_leaves_are_stored_together_once(paired):
    repo, tree = paired
    [group] = objects_in(repo, "groups")
    assert header_of(repo, "w").needs == header_of(repo, "v").needs == (group,)
    leaves = objects_in(repo, "leaves")
    assert {key for leaf in leaves for key in repo.store.keys(f"{leaf}/")} == {
        f"{leaf}/zarr.json" for leaf in leaves
    }
    for name, array in tree.items():
        np.testing.assert_array_equal(repo.restore(paths=name)[name], array)
    np.testing.assert_array_equal(repo.restore()["v"], tree["v"])
    assert repo.fsck().ok


def test_the_name_of_a_group_follows_from_the_page(paired):
    """docs/format.md, "Digests", with a BLAKE3 and a MessagePack library alone."""
    repo, tree = paired
    [group] = objects_in(repo, "groups")
    attributes = json.loads(repo.store.read(f"{group}/zarr.json"))["attributes"]["vcjax"]
    members = [leaf_key(entry.digest) for entry in entries_of(repo, *tree)]
    assert attributes["members"] == members
    parts = {
        name: [part["dtype"], bytes.fromhex(part["digest"])]
        for name, part in sorted(attributes["parts"].items())
    }
    assert list(parts) == ["second", "sum"]
    named = msgpack.packb(["vcjax.group.1", "pair", {}, [], members, parts], use_bin_type=True)
    assert named is not None
    assert group.rpartition("/")[2] == blake3.blake3(named).hexdigest()


@pytest.mark.parametrize(
    "documented",
    [
        ObjectStore.write_update,
        updates.Update,
        updates.ArrayContent,
    ],
)
def test_the_examples_run(documented):
    names = {**vars(updates.update), "vcjax": vcjax, "StagedLeaf": StagedLeaf}
    [example] = doctest.DocTestFinder(recurse=False).find(documented, globs=names)
    assert example.examples
    failed, _ = doctest.DocTestRunner().run(example)
    assert not failed


def test_a_leaf_is_readable_alone(repo, example):
    tree = {name: floats(seed) for seed, name in enumerate("abc")}
    repo.objects.write_update("stack", [], [StagedLeaf.of(array) for array in tree.values()])
    repo.commit(tree)
    example.reads.clear()
    np.testing.assert_array_equal(repo.restore(paths="b")["b"], tree["b"])
    assert example.reads == [(tree["b"].size, 3 * tree["b"].size)]


def test_a_region_reads_regions_of_the_bases_alone(averaged, example):
    repo, near = averaged
    [entry] = entries_of(repo, "near")
    example.reads.clear()
    boxes = [((3, 4), (0, 10)), ((3, 4), (5, 7))]
    [(_, (one, two))] = repo.objects.read_boxes({"near": Wanted(entry, boxes)})
    np.testing.assert_array_equal(one, near[3:4, :10])
    np.testing.assert_array_equal(two, near[3:4, 5:7])
    chunk = 2 * LARGE[1]
    assert example.reads == [(chunk, near.size)] * 2


def test_a_whole_leaf_is_computed_in_pieces(repo, example):
    """What an update needs at once does not grow with the leaf."""
    shape = (24, 1 << 19)  # 48 MiB
    base = np.zeros(shape, np.float32)
    base[7] = 1
    repo.commit({"a": base, "b": base + 2})
    repo.objects.write_update("average", entries_of(repo, "a", "b"), [StagedLeaf.of(base + 1)])
    repo.commit({"w": base + 1})
    example.reads.clear()
    np.testing.assert_array_equal(repo.restore()["w"], base + 1)
    most = regions.REGION_BYTES // 4
    assert max(size for size, _ in example.reads) <= most
    assert sum(size for size, _ in example.reads) == 2 * base.size


def test_restoring_onto_shards(averaged):
    repo, near = averaged
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    like = {"near": jax.ShapeDtypeStruct(near.shape, near.dtype, sharding=sharding)}
    restored = repo.restore(like=like)["near"]
    assert restored.sharding == sharding
    np.testing.assert_array_equal(restored, near)


def test_differences_and_diffs_on_top(averaged):
    repo, near = averaged
    changed = near.copy()
    changed[0, 0] += 1
    repo.commit({"near": changed}, "changed")
    assert header_of(repo, "near").update == "difference"
    assert header_of(repo, "near").depth == 2
    np.testing.assert_array_equal(repo.restore()["near"], changed)
    [change] = repo.diff("HEAD~1", "HEAD").changes
    assert change.path == "near"
    assert change.stats["changed"] == 1
    assert repo.fsck().ok


def test_bases_in_packs_and_manifests(repo, example):
    small, tiny = floats(1, (100, 3)), floats(2, (3,))
    repo.commit({"small": small, "tiny": tiny, "0d": np.float32(4)})
    for name, array in {"small": small, "tiny": tiny, "0d": np.float32(4)}.items():
        new = np.asarray(array + 1)
        pair = entries_of(repo, name) * 2
        [entry] = repo.objects.write_update("average", pair, [StagedLeaf.of(new)])
        np.testing.assert_array_equal(repo.objects.content(entry).read(), new)
        box = tuple((length // 2, length) for length in new.shape)
        [(_, [part])] = repo.objects.read_boxes({"": Wanted(entry, [box])})
        np.testing.assert_array_equal(part, new[tuple(slice(*span) for span in box)])


def test_the_parts_open_with_plain_zarr(averaged, tmp_path):
    zarr = pytest.importorskip("zarr")
    repo, near = averaged
    [entry] = entries_of(repo, "near")
    group = zarr.open_group(str(tmp_path / "repo" / leaf_key(entry.digest)), mode="r")
    assert group["residual"].shape == (*near.shape, 4)


def test_collecting_keeps_what_live_leaves_stand_on(averaged):
    repo, near = averaged
    repo.prune(["HEAD~1"], "a test")
    repo.gc(unsafe=True)
    np.testing.assert_array_equal(repo.restore()["near"], near)
    assert len(objects_in(repo, "leaves")) == 3
    repo.commit({"near": 0})
    repo.gc(unsafe=True)  # the log still leads there
    assert repo.fsck().ok
    _later(repo)
    repo.prune(["HEAD~1"], "a test")
    assert not objects_in(repo, "leaves")
    assert repo.fsck().ok


def _later(repo):
    """As if nothing had been relied upon for a day."""
    for key in [*objects_in(repo, "leaves"), *objects_in(repo, "groups")]:
        document = json.loads(repo.store.read(f"{key}/zarr.json"))
        attributes = document["attributes"]["vcjax"]
        attributes.pop("relied", None)
        _write_header(repo.store, key, document)


def _write_header(store, key, document):
    attributes = document.pop("attributes")["vcjax"]
    attributes["check"] = checksum(document | attributes)
    data = json.dumps({**document, "attributes": {"vcjax": attributes}}).encode()
    store.write(f"{key}/zarr.json", data)


@pytest.mark.parametrize("kept", ["w", "v"])
def test_a_group_lives_as_long_as_any_of_its_leaves(paired, kept):
    repo, tree = paired
    [other] = {"w", "v"} - {kept}
    repo.commit({kept: tree[kept]}, "one of them")
    _later(repo)
    repo.prune(["HEAD~1"], "a test")
    assert objects_in(repo, "leaves") == {leaf_key(entries_of(repo, kept)[0].digest)}
    np.testing.assert_array_equal(repo.restore()[kept], tree[kept])
    repo.commit({other: 1}, "none")
    _later(repo)
    repo.prune(["HEAD~1"], "a test")
    assert not repo.store.keys("leaves/")
    assert not repo.store.keys("groups/")
    assert repo.fsck().ok


def test_gc_takes_groups_that_nothing_leads_to(repo, example):
    repo.commit({"a": 1})
    repo.objects.write_update("pair", [], [StagedLeaf.of(integers(n)) for n in (1, 2)])
    assert not repo.gc().objects  # they are young
    assert len(repo.gc(unsafe=True).objects) == 3
    assert not repo.store.keys("leaves/")
    assert not repo.store.keys("groups/")


def test_a_group_that_lost_a_leaf_is_written_again(paired):
    repo, tree = paired
    [entry] = entries_of(repo, "v")
    repo.store.delete(repo.store.keys(leaf_key(entry.digest)))
    with pytest.raises(MissingObjectError, match="leaf 'v' is gone"):
        repo.restore()
    repo.objects.write_update("pair", [], [StagedLeaf.of(tree[name]) for name in ("w", "v")])
    np.testing.assert_array_equal(repo.restore()["v"], tree["v"])
    assert repo.fsck().ok


# -- what is damaged ---------------------------------------------------------------


def test_flipped_bits_are_found(averaged, tmp_path):
    """In a part, a header or a base: restored right or not at all, and fsck tells."""
    repo, near = averaged
    [entry] = entries_of(repo, "near")
    rng = np.random.default_rng(0)
    files = [p for p in (tmp_path / "repo" / leaf_key(entry.digest)).rglob("*") if p.is_file()]
    assert len(files) > 3
    for path in files:
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 4
        path.write_bytes(flipped)
        fresh = vcjax.Repository.open(tmp_path / "repo")
        if path.parent.name == "residual" and path.name == "zarr.json":
            np.testing.assert_array_equal(fresh.restore()["near"], near)
        else:
            with pytest.raises(CorruptionError, match=leaf_key(entry.digest)) as caught:
                fresh.restore()
            assert path.name == "zarr.json" or caught.value.path == "near"
        assert fresh.fsck().problems
        path.write_bytes(data)
    assert vcjax.Repository.open(tmp_path / "repo").fsck().ok


def test_fsck_names_the_part(paired, tmp_path):
    repo, _ = paired
    [group] = objects_in(repo, "groups")
    chunk = next(path for path in (tmp_path / "repo" / group / "sum").rglob("0") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    named = {problem.object for problem in repo.fsck().problems}
    assert f"{group}/sum" in named
    assert any("leaf 'w'" in name for name in named)
    assert not any("leaf 'v'" in name for name in named)  # it is of the other part alone


def test_fsck_knows_a_group_that_is_another(paired):
    repo, _ = paired
    [group] = objects_in(repo, "groups")
    document = json.loads(repo.store.read(f"{group}/zarr.json"))
    document["attributes"]["vcjax"]["parameters"] = {"scale": 2}
    _write_header(repo.store, group, document)
    [problem] = repo.fsck().problems
    assert (problem.object, problem.message) == (
        group,
        "is not of the leaves and parts that it is named by",
    )


def test_a_missing_base(averaged):
    repo, _ = averaged
    [entry] = entries_of(repo, "second", revision="HEAD~1")
    key = leaf_key(entry.digest)
    repo.store.delete(repo.store.keys(key))
    with pytest.raises(MissingObjectError, match=f"leaf 'near' is gone: there is no {key}"):
        repo.restore()
    assert any("leaf 'near'" in problem.object for problem in repo.fsck().problems)


def test_a_missing_group(paired):
    repo, _ = paired
    [group] = objects_in(repo, "groups")
    repo.store.delete(repo.store.keys(group))
    with pytest.raises(MissingObjectError, match=f"leaf '[wv]' is gone.*{group}"):
        repo.restore()
    assert len(repo.fsck().problems) == 2


def test_a_group_without_the_leaf(paired):
    repo, _ = paired
    [group] = objects_in(repo, "groups")
    document = json.loads(repo.store.read(f"{group}/zarr.json"))
    document["attributes"]["vcjax"]["members"] = [leaf_key("0" * 64)] * 2
    _write_header(repo.store, group, document)
    with pytest.raises(CorruptionError, match=f"leaf '[wv]' is damaged: {group}/zarr.json does"):
        repo.restore()


def test_a_cycle_of_bases(averaged):
    """No writer makes one; a reader that meets one ends."""
    repo, _ = averaged
    [near] = entries_of(repo, "near")
    [first] = entries_of(repo, "first", revision="HEAD~1")
    document = json.loads(repo.store.read(f"{leaf_key(near.digest)}/zarr.json"))
    bases = document["attributes"]["vcjax"]["bases"]
    bases[0] = bases[0] | {"digest": near.digest}
    _write_header(repo.store, leaf_key(near.digest), document)
    with pytest.raises(CorruptionError, match=r"leaf 'near' is damaged: .* stands on itself"):
        repo.restore()
    assert set(read_needed(repo.store, leaf_key(near.digest))) >= {leaf_key(near.digest)}
    assert not repo.fsck().ok
    repo.gc(unsafe=True)
    assert leaf_key(first.digest) in objects_in(repo, "leaves")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bases", [{"digest": "../../secrets", "dtype": "float32", "shape": []}]),
        ("parts", {"../../leaves": {"array": {}, "dtype": "uint8", "digest": "0" * 64}}),
        ("parts", []),
        ("members", ["refs/heads/main"]),
        ("bases", 7),
    ],
)
def test_headers_that_no_writer_makes(averaged, field, value):
    repo, _ = averaged
    [entry] = entries_of(repo, "near")
    key = leaf_key(entry.digest)
    document = json.loads(repo.store.read(f"{key}/zarr.json"))
    document["attributes"]["vcjax"][field] = value
    _write_header(repo.store, key, document)
    with pytest.raises(CorruptionError, match=r"zarr\.json (is damaged|describes)"):
        repo.restore()
    assert not repo.fsck().ok


def test_an_unknown_update_is_refused_by_name(averaged, uninstall):
    repo, _ = averaged
    uninstall()
    fresh = vcjax.Repository.open(repo.url)
    with pytest.raises(UnknownFormatError, match=r"leaf 'near': leaves/.* as 'average'") as caught:
        fresh.restore()
    assert caught.value.path == "near"
    assert "install the package that provides it" in str(caught.value.hint)
    assert str(caught.value.hint).endswith("what wrote it was example-updates 1.5")
    [problem] = fresh.fsck().problems
    assert "stored as 'average'" in problem.message
    assert not fresh.gc(unsafe=True).objects  # bases are known without it
    assert fresh.restore("HEAD~1")["first"].shape == LARGE


@pytest.mark.parametrize(
    ("bent", "message"),
    [
        ("apply", "cannot be rebuilt: the update 'copy' of leaves/.* fails: ZeroDivisionError"),
        ("dtype", r"gives float64\[.*\], not float32"),
        ("value", "is damaged: the content of leaves/.* does not have its digest"),
    ],
)
def test_an_update_that_gives_something_else(repo, example, bent, message):
    array = floats(5)
    repo.objects.write_update("copy", [], [StagedLeaf.of(array)])
    repo.commit({"w": array})
    example.COPY.bent = bent
    with pytest.raises(CorruptionError, match=message) as caught:
        repo.restore()
    assert caught.value.path == "w"
    assert caught.value.hint
    [problem] = repo.fsck().problems
    assert "leaf 'w'" in problem.object
    example.COPY.bent = None
    np.testing.assert_array_equal(repo.restore()["w"], array)


# -- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("bent", "message"),
    [
        ("encode", "cannot express 1 by 0 leaves: KeyError: 'no such thing'"),
        ("parameters", "has parameters that cannot be stored"),
        ("name", "names a part '../part'"),
        ("parts", "encodes to dict"),
        ("apply", "cannot be read back: .*ZeroDivisionError"),
        ("dtype", "cannot be read back: .*gives float64"),
        ("value", "does not give back leaf 0"),
    ],
)
def test_nothing_is_published_that_cannot_be_read_back(repo, example, bent, message):
    example.COPY.bent = bent
    with pytest.raises(UpdateError, match=f"the update 'copy' {message}") as caught:
        repo.objects.write_update("copy", [], [StagedLeaf.of(floats(1))])
    assert caught.value.hint
    example.COPY.bent = None
    repo.commit({"w": floats(1)})
    np.testing.assert_array_equal(repo.restore()["w"], floats(1))
    assert header_of(repo, "w").update == "dense"


def test_what_cannot_be_written(repo, example):
    repo.commit({"a": floats(1), "b": floats(2, (3, 1 << 19)), "value": 3})
    a, b, value = entries_of(repo, "a", "b", "value")
    new = StagedLeaf.of(floats(3))
    with pytest.raises(UnknownFormatError, match="there is no update 'averages'"):
        repo.objects.write_update("averages", [a, a], [new])
    with pytest.raises(UpdateError, match="'average' is given a plain Python value"):
        repo.objects.write_update("average", [a, value], [new])
    with pytest.raises(UpdateError, match="of one leaf to one base, not of 1 to 2"):
        repo.objects.write_update("difference", [a, a], [new])
    with pytest.raises(UpdateError, match="no difference by chunks"):
        repo.objects.write_update("difference", [b], [new])
    with pytest.raises(UpdateError, match="'average' is of no leaves"):
        repo.objects.write_update("average", [a, a], [])
    repo.store.delete(repo.store.keys(leaf_key(b.digest)))
    with pytest.raises(MissingObjectError, match="a base of the update 'average' is gone"):
        repo.objects.write_update("average", [a, b], [new])


def test_a_damaged_base_is_not_built_upon(repo, example, tmp_path):
    repo.commit({"a": floats(1)})
    [entry] = entries_of(repo, "a")
    [chunk, *_] = (tmp_path / "repo" / leaf_key(entry.digest) / "c").rglob("0/0")
    data = bytearray(chunk.read_bytes())
    data[9] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptionError, match="leaf 'base 0': leaves/"):
        repo.objects.write_update("average", [entry] * 2, [StagedLeaf.of(floats(2))])


def test_chains_are_bounded(repo, example):
    """In depth, and in how many objects go into a leaf."""
    small = [floats(seed, (200, 100)) for seed in range(9)]
    repo.commit({"a": small[0]})
    last = entries_of(repo, "a")[0]
    for array in small[1 : updates.MAX_DEPTH + 1]:
        [last] = repo.objects.write_update("average", [last, last], [StagedLeaf.of(array)])
        np.testing.assert_array_equal(repo.objects.content(last).read(), array)
    with pytest.raises(UpdateError, match="would stand on 62 objects, 5 in a row") as caught:
        repo.objects.write_update("average", [last, last], [StagedLeaf.of(small[7])])
    assert "take bases that are stored dense" in str(caught.value.hint)
    many = [last] * 10
    with pytest.raises(UpdateError, match="would stand on"):
        repo.objects.write_update("copy", many, [StagedLeaf.of(small[8])])


def test_a_difference_is_stored_as_a_commit_stores_it(tmp_path, example):
    before, after = floats(1), floats(1)
    after[2] = 0
    headers = []
    for name in ("by commit", "by update"):
        repo = vcjax.Repository.init(tmp_path / name)
        repo.commit({"w": before})
        if name == "by update":
            repo.objects.write_update("difference", entries_of(repo, "w"), [StagedLeaf.of(after)])
        repo.commit({"w": after})
        header = repo.store.read(f"{leaf_key(entries_of(repo, 'w')[0].digest)}/zarr.json")
        assert header is not None
        document = json.loads(header)
        attributes = document["attributes"]["vcjax"]
        for changing in ("written", "relied", "check"):
            attributes.pop(changing, None)
        headers.append(document)
        np.testing.assert_array_equal(repo.restore()["w"], after)
    assert headers[0] == headers[1]
    assert headers[0]["attributes"]["vcjax"]["update"] == "difference"


def test_another_process_reads_what_one_wrote(averaged, package, tmp_path, processes):
    repo, near = averaged
    np.save(tmp_path / "near.npy", near)
    code = (
        "import sys, numpy as np, vcjax\n"
        "restored = vcjax.Repository.open(sys.argv[1]).restore()['near']\n"
        "assert np.array_equal(restored, np.load(sys.argv[2]))\n"
    )
    plain = environment()
    for path, fails in ((f"{plain['PYTHONPATH']}:{package}", False), (plain["PYTHONPATH"], True)):
        env = {**plain, "PYTHONPATH": path}
        reader = processes.python(code, repo.url, tmp_path / "near.npy", env=env)
        _, problems = reader.finish(1 if fails else 0)
        assert ("UnknownFormatError" in problems) == fails


# -- round trips -------------------------------------------------------------------

DTYPES = ["float32", "bfloat16", "float16", "float64", "int8", "uint64", "bool", "int4"]
DTYPES += ["complex128", "float8_e4m3", "key<threefry2x32>"]


def arrays_of(dtype, shape, seed, count):
    kind = storage_dtype(dtype)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = rng.integers(0, 2 if dtype == "bool" else 256, (*shape, kind.itemsize), np.uint8)
        array = data.view(kind).reshape(shape)
        if dtype.startswith("key"):
            yield jax.random.wrap_key_data(jnp.asarray(array), impl="threefry2x32")
        else:
            yield array


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_dtype_and_shape_comes_back(example, dtype, shape, seed, data):
    """Whole, and any region; by two bases, and two together, and one on the other."""
    if dtype.startswith("key"):
        shape = (*shape, 2)
    repo = vcjax.Repository.init(f"memory://{secrets.token_hex(8)}")
    staged = [StagedLeaf.of(array) for array in arrays_of(dtype, shape, seed, 5)]
    bases = repo.objects.write(staged[:2], {})
    stacked = repo.objects.write_update("stack", bases, staged[2:4])
    entries = {"a": stacked[0], "b": stacked[1]}
    entries["c"] = repo.objects.write_update("average", [bases[0], stacked[1]], staged[4:])[0]
    found = dict(repo.objects.read(entries))
    spans = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in staged[0].spec.shape]
    box = tuple(map(tuple, spans))
    for (name, entry), leaf in zip(entries.items(), staged[2:], strict=True):
        expected = canonical(leaf.leaf)
        assert entry.is_inline or found[name].tobytes() == expected.tobytes()
        assert entry.spec.dtype == dtype
        if entry.is_object:
            part = repo.objects.content(entry).read(tuple(slice(*span) for span in box))
            assert part.tobytes() == expected[tuple(slice(*span) for span in box)].tobytes()


@given(
    st.lists(st.integers(0, 11), max_size=6),
    st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
)
@settings(max_examples=40, deadline=None)
def test_a_difference_as_an_update_of_contents(rows, leading, trailing):
    """`encode` and `apply` of `difference` agree, for any region."""
    base = np.arange(12 * 9 * 100_000, dtype=np.int8).reshape(12, 9, 100_000)
    new = base.copy()
    new[rows] += 1
    update = updates.update_named("difference")
    contents = updates.ArrayContent(base), updates.ArrayContent(new)
    parts = update.encode(contents[:1], contents[1:])
    changed = {row // 4 for row in rows}  # 900 kB a row
    assert parts.parameters["own"] == sorted(changed)
    index = (slice(*leading), slice(*trailing), slice(5, 8))
    found = update.apply(contents[:1], parts, updates.Region(0, index))
    np.testing.assert_array_equal(found, new[index])
    np.testing.assert_array_equal(update.apply(contents[:1], parts), new)
