"""Leaves: all dtypes through a whole commit, what identity depends on, what a save costs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vcjax
from vcjax import hashing
from vcjax.objects.array_metadata import ZARR_DTYPES
from vcjax.tree import dtypes, storage_dtype

pytestmark = pytest.mark.smoke

BIG = 70_000  # bytes: more than go into a pack
NARROW = {"int1": 1, "int2": 2, "int4": 4, "uint1": 1, "uint2": 2, "uint4": 4}
MASKS = {"float6_e2m3fn": 0x3F, "float6_e3m2fn": 0x3F, "float4_e2m1fn": 0x0F, "bool": 1}
ZARR_PYTHON = [
    name
    for name in dtypes.names()
    if name.rstrip("0123456789") in ("bool", "int", "uint", "float", "complex")
    and name not in NARROW
    and name != "complex32"
]


def sample(name, shape, seed=0):
    """An array of every bit pattern that the dtype has, NaNs with payloads among them."""
    kind = storage_dtype(name)
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if name in NARROW:
        low = -(2 ** (NARROW[name] - 1)) if name.startswith("int") else 0
        values = rng.integers(low, low + 2 ** NARROW[name], count).astype(kind).reshape(shape)
        return dtypes.normalise(values)
    raw = np.frombuffer(rng.bytes(count * kind.itemsize), np.uint8)
    return (raw & MASKS.get(name, 0xFF)).view(kind).reshape(shape)


def leaf_folder(repo, path):
    digest = repo.manifest().leaves[path].digest
    return repo.store.location.folder / "leaves" / digest[:2] / digest


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compressed"])
def stored(request, tmp_path_factory):
    """A repository with a large leaf of every dtype, and the tree."""
    repo = vcjax.Repository.init(tmp_path_factory.mktemp("all"), compress=request.param)
    tree = {
        name: sample(name, (BIG // storage_dtype(name).itemsize // 2, 2)) for name in dtypes.names()
    }
    repo.commit(tree, "every dtype")
    return vcjax.Repository.open(repo.url), tree


@pytest.mark.parametrize("name", dtypes.names())
def test_every_dtype_comes_back_bit_for_bit(stored, name):
    repo, tree = stored
    restored = repo.restore(paths=name)[name]
    assert restored.dtype == tree[name].dtype
    assert restored.shape == tree[name].shape
    assert restored.tobytes() == tree[name].tobytes()


@pytest.mark.parametrize("name", dtypes.names())
def test_leaf_object_opens_with_plain_tensorstore(stored, name):
    repo, tree = stored
    path = f"{leaf_folder(repo, name)}/"
    array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}).result()
    content = array.read().result()
    width = 8 * tree[name].dtype.itemsize
    assert array.dtype.name == (name if name in ZARR_DTYPES else f"uint{width}")
    if name not in ZARR_DTYPES:
        content = content.view(tree[name].dtype)
    # Through the values for int4 and the like, whose unused bits TensorStore may set.
    assert content.astype(tree[name].dtype).tobytes() == tree[name].tobytes()


@pytest.mark.parametrize("name", ZARR_PYTHON)
def test_leaf_object_opens_with_zarr_python(stored, name):
    repo, tree = stored
    array = zarr.open_array(leaf_folder(repo, name), mode="r", zarr_format=3)
    assert array.dtype == tree[name].dtype
    assert np.asarray(array[...]).tobytes() == tree[name].tobytes()


def test_several_chunks_open_with_tensorstore_and_zarr(repo):
    array = np.arange(2_500_000, dtype=np.float32).reshape(2500, 1000)
    deep = np.arange(2 * 1_100_000, dtype=np.float32).reshape(2, 1_100_000)
    repo.commit({"w": array, "deep": deep}, "chunks")
    for name, expected in (("w", array), ("deep", deep)):
        path = f"{leaf_folder(repo, name)}/"
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        np.testing.assert_array_equal(ts.open(spec).result().read().result(), expected)
        np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], expected)
        np.testing.assert_array_equal(repo.restore()[name], expected)


def sizes(repo, *folders):
    root = repo.store.location.folder
    return {
        path: path.stat().st_size
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


def mixed_tree():
    return {
        "big": jnp.arange(40_000, dtype=jnp.float32),
        "small": np.arange(1000),
        "tiny": jnp.ones(3),
        "step": 7,
    }


def test_unchanged_save_writes_a_commit_and_no_leaf_bytes(repo):
    repo.commit(mixed_tree(), "one")
    before = sizes(repo, "leaves", "packs", "manifests")
    commits = sizes(repo, "commits")
    again = repo.commit(mixed_tree(), "two")
    assert sizes(repo, "leaves", "packs", "manifests") == before
    assert len(sizes(repo, "commits")) == len(commits) + 1
    assert again.parents == (repo.resolve("HEAD~1").digest,)


def test_leaf_that_came_back_is_not_stored_again(repo):
    repo.commit(mixed_tree(), "one")
    before = sizes(repo, "leaves")
    repo.commit(mixed_tree() | {"big": np.zeros(3)}, "without it")
    repo.commit(mixed_tree(), "with it again")
    assert set(sizes(repo, "leaves")) == set(before)


def test_equal_leaves_are_stored_once(repo):
    tree = {str(i): np.arange(40_000, dtype=np.float32) for i in range(4)}
    repo.commit(tree, "tied")
    assert len({path.parts[-3] for path in sizes(repo, "leaves") if path.name == "0"}) == 1
    for value in repo.restore().values():
        np.testing.assert_array_equal(value, tree["0"])


def test_other_places_for_one_leaf(repo):
    """A leaf in a pack may lie there at any offset, and again in another pack."""
    repo.commit({"a": np.arange(100.0), "b": np.arange(1000.0)}, "one")
    repo.switch("other", create=True)
    repo.commit({"b": np.arange(1000.0), "c": np.arange(5000.0)}, "two")
    restored = repo.restore()
    assert list(restored) == ["b", "c"]
    np.testing.assert_array_equal(restored["b"], np.arange(1000.0))
    assert repo.fsck().ok


def layouts():
    base = np.arange(2 * 3 * 64, dtype=np.float32).reshape(16, 24)
    wide = np.zeros((16, 48), np.float32)
    wide[:, ::2] = base
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    yield "plain", base
    yield "fortran", np.asfortranarray(base)
    yield "big-endian", base.astype(">f4")
    yield "strided", wide[:, ::2]
    yield "reversed", base[::-1].copy()[::-1]
    yield "one device", jax.device_put(base)
    for spec in (("x",), ("y",), (None, "x"), ("x", "y"), ("y", "x"), ()):
        yield f"{spec}", jax.device_put(base, NamedSharding(mesh, PartitionSpec(*spec)))


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("array", [pytest.param(a, id=n) for n, a in layouts()])
def test_identity_does_not_depend_on_layout(repo, array):
    expected = dict(layouts())["plain"]
    commit = repo.commit({"w": array}, "layout")
    reference = repo.commit({"w": expected}, "reference", branch="reference")
    assert commit.tree == reference.tree
    np.testing.assert_array_equal(repo.restore("main")["w"], expected)
    assert repo.diff("main", "reference").is_empty


def test_restores_onto_shardings(repo):
    expected = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    repo.commit({"w": expected}, "plain")
    mesh = Mesh(np.array(jax.devices()), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    target = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)
    restored = repo.restore(like={"w": target})["w"]
    assert restored.sharding == sharding
    np.testing.assert_array_equal(restored, expected)


def test_content_and_dtype_are_identity_home_is_not(repo):
    def digest(value):
        return repo.commit({"w": value}, "").tree

    one = digest(np.array([1, 2], np.float32))
    assert digest(jnp.float32([1, 2])) == one
    assert digest(np.array([1, 3], np.float32)) != one
    assert digest(np.array([[1, 2]], np.float32)) != one
    assert digest(np.array([1, 2], np.float32).view(np.int32)) != one
    assert digest(np.array([0.0], np.float32)) != digest(np.array([-0.0], np.float32))
    assert digest(1) != digest(1.0) != digest(True)
    assert digest([1, 2]) != digest((1, 2))


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        (),
        None,
        5,
        "text",
        np.float32(3),
        {"a": {}, "b": [], "c": (), "d": None},
        {"a": [{}, [None, ()]]},
    ],
    ids=repr,
)
def test_small_and_empty_trees(repo, tree):
    repo.commit(tree, "small")
    restored = vcjax.Repository.open(repo.url).restore()
    assert type(restored) is type(tree)
    assert restored == tree
    assert repo.fsck().ok
    assert repo.diff("HEAD", "HEAD").is_empty


def test_a_tree_that_is_one_array(repo):
    repo.commit(jnp.arange(3), "an array")
    np.testing.assert_array_equal(repo.restore(), np.arange(3))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (0, 2**40), (3, 0, 7)])
@pytest.mark.parametrize("name", ["float32", "bool", "int4", "float8_e4m3"])
def test_zero_size(repo, shape, name):
    array = np.zeros(shape, storage_dtype(name))
    commit = repo.commit({"w": array}, "nothing")
    assert commit.nbytes == 0
    restored = repo.restore()["w"]
    assert (restored.shape, restored.dtype) == (shape, array.dtype)
    assert repo.fsck().ok


def test_integers_of_any_size(repo):
    values = [0, -1, 2**63, -(2**64), 10**40, -(10**6000)]
    repo.commit(values, "integers")
    assert repo.restore() == values


def clear_caches():
    for function in vars(hashing.grid).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 bytes, so that small shapes have many."""
    monkeypatch.setattr("vcjax.hashing.grid.CHUNK_BYTES", 64)
    clear_caches()
    yield 64
    clear_caches()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
    itemsize=st.sampled_from([1, 2, 4, 8, 16]),
)
def test_chunks_tile_the_bytes(small_chunks, shape, itemsize):
    """Chunks are contiguous, in order, as many as the grid says, and nearly equal."""
    chunk = hashing.chunk_shape(shape, itemsize)
    ranges = list(hashing.chunk_ranges(shape, itemsize))
    assert len(ranges) == hashing.chunk_count(shape, itemsize)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges)][: len(ranges)]
    total = itemsize * int(np.prod(shape))
    assert (ranges[-1][1] if ranges else 0) == total
    full = itemsize * int(np.prod(chunk))
    assert all(0 < stop - start <= full for start, stop in ranges)
    if total and shape:
        assert full < 2 * small_chunks
        axis = next(
            i for i in range(len(shape)) if itemsize * np.prod(shape[i + 1 :]) <= small_chunks
        )
        rows = shape[axis]
        parts = -(-rows // chunk[axis])
        # As zarr pads the last part to full size: less than one row lost per part.
        assert parts * chunk[axis] - rows < parts


def test_header_names_content(repo):
    repo.commit({"w": np.arange(2_000_000, dtype=np.float32)}, "two chunks")
    header = json.loads((leaf_folder(repo, "w") / "zarr.json").read_text())
    entry = repo.manifest().leaves["w"]
    assert header["attributes"]["vcjax"]["digest"] == entry.digest
    assert header["attributes"]["vcjax"]["chunks"] == [chunk.hex() for chunk in entry.chunks]
    assert len(entry.chunks) == 2
