"""Digests of leaves do not depend on backend, device, sharding or x64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vcjax import tree
from vcjax.hashing import device, digest_leaves, leaves, speed_report, tiles, tree_digests
from vcjax.hashing import schedule as scheduling

from ..compiled import clear_programs, program_count

# Those of BLAKE3 itself are optimised in test_blake3.py.
pytestmark = pytest.mark.usefixtures("compile_quickly")

SIZES = (1, 3, 1025)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 1 MiB: a CPU takes 0.1 s for one of 16 MiB."""
    monkeypatch.setattr(scheduling, "TILE_LANES", (1024, 16384))


def bits_of(name: str, size: int) -> np.ndarray:
    """Random bit patterns, NaN payloads and negative zeros among them."""
    rng = np.random.default_rng(size)
    dtype = tree.storage_dtype(name)
    raw = rng.integers(0, 256, size * dtype.itemsize, np.uint8).view(dtype)
    if name == "bool":
        return np.asarray(raw.view(np.uint8) % 2, np.bool_)
    leaf = tree.Leaf(tree.LeafSpec(name, raw.shape, "numpy"), raw)
    return tree.canonical(leaf)


def jax_dtypes() -> list[str]:
    """The dtypes of which this JAX can make arrays."""
    unsupported = ("int1", "uint1", "float6_e2m3fn", "float6_e3m2fn", "complex32", "bcomplex32")
    return [name for name in tree.dtypes.names() if name not in unsupported]


@pytest.mark.parametrize("name", jax_dtypes())
def test_every_dtype(name):
    arrays = {str(size): bits_of(name, size) for size in SIZES}
    with jax.enable_x64(True):
        on_device = {path: jnp.asarray(array) for path, array in arrays.items()}
    assert all(array.dtype.name == name for array in on_device.values())
    expected = tree_digests(arrays)
    assert tree_digests(on_device, backend="device") == expected
    assert tree_digests(on_device, backend="host") == expected


def test_every_kind_of_leaf():
    values = {
        "key": jax.random.split(jax.random.key(3), (2, 2)),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.float32(3),
        "numpy": np.arange(5),
        "negative zero": jnp.asarray([0.0, -0.0]),
        "int": 3,
        "text": "x",
        "nested": [jnp.arange(3), None, {"a": jnp.arange(3.0)}],
    }
    on_device = tree_digests(values, backend="device")
    assert on_device == tree_digests(values, backend="host")
    assert list(on_device) == list(tree.leaf_dict(tree.flatten(values)))
    assert on_device["nested/0"] != on_device["nested/2/a"]


def test_numpy_and_jax_of_the_same_content_agree():
    array = np.random.default_rng(0).standard_normal((300, 70)).astype(np.float32)
    assert tree_digests([array]) == tree_digests([jnp.asarray(array)], backend="device")


@pytest.mark.parametrize("x64", [False, True])
def test_64_bit_arrays_under_either_setting(x64):
    with jax.enable_x64(True):
        array = jnp.asarray(np.random.default_rng(0).standard_normal(100))
    with jax.enable_x64(x64):
        assert tree_digests([array], backend="device") == tree_digests([np.asarray(array)])


def specs(dimensions: int) -> list[PartitionSpec]:
    """Every way to spread the mesh axes "x" and "y" over the axes of an array."""
    found = set()
    places = [*range(dimensions), None]
    for order in (("x", "y"), ("y", "x")):
        for chosen in itertools.product(places, repeat=2):
            names: list[tuple[str, ...]] = [()] * dimensions
            for name, place in zip(order, chosen, strict=True):
                if place is not None:
                    names[place] += (name,)
            found.add(tuple(names))
    return [PartitionSpec(*(name or None for name in names)) for names in sorted(found)]


SHAPES = {1: (8192,), 2: (64, 72), 3: (8, 24, 40), 4: (8, 8, 16, 16)}
"""Of float32 leaves with 5 to 8 chunks of 4 KiB; no rows of 72 or 40 fill one evenly."""


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "dimensions", [1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))]
)
def test_every_sharding(dimensions):
    shape = SHAPES[dimensions]
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = tree_digests([array])["0"]
    every = specs(dimensions)
    assert len(every) == {1: 5, 2: 11, 3: 19, 4: 29}[dimensions]
    sharded = {str(spec): jax.device_put(array, NamedSharding(mesh, spec)) for spec in every}
    digests = tree_digests(sharded, backend="device")
    assert digests == dict.fromkeys(sharded, expected)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("spec", "name"),
    [(("x",), "bfloat16"), ((None, "x"), "int4"), ((), "bool"), ((None, "x"), "complex64")],
)
def test_sharded_dtypes_and_rows_longer_than_a_chunk(spec, name):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    array = bits_of(name, 8 * 5000).reshape(8, 5000)
    placed = jax.device_put(jnp.asarray(array), NamedSharding(mesh, PartitionSpec(*spec)))
    assert tree_digests([placed], backend="device") == tree_digests([array])


@pytest.mark.usefixtures("small_chunks")
def test_chunks_are_digested_by_the_devices_that_hold_them(monkeypatch):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    array = np.arange(8 * 1024, dtype=np.float32).reshape(8, 1024)  # a row is a chunk
    placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec("x")))
    work = scheduling.tasks_of([("float32", placed)])
    assert {d: [t.region.first for t in tasks] for d, tasks in work.items()} == {
        d: [i] for i, d in enumerate(mesh.devices.flat)
    }
    replicated = jax.device_put(array, NamedSharding(mesh, PartitionSpec()))
    work = scheduling.tasks_of([("float32", replicated)] * 16)
    assert len(work) == 8  # replicas share the work
    assert max(map(len, work.values())) == min(map(len, work.values()))


def test_a_large_tree_compiles_one_kernel_and_few_copies():
    shapes = [(64,), (64, 192), (192,), (64, 64), (256, 64)]
    model = {
        str(i): jnp.full(shapes[i % len(shapes)], i, jnp.float32 if i % 2 else jnp.bfloat16)
        for i in range(150)
    }
    device._programs.cache_clear()
    clear_programs(tiles._place)
    digests = tree_digests(model, backend="device")
    assert digests == tree_digests(model, backend="host")
    hash_tiles, _ = device._programs((jax.devices()[0],))
    assert program_count(hash_tiles) == 1
    kinds = 2 * len(shapes)
    assert program_count(tiles._place) == 2 * kinds  # 15 of a kind: by fours and by ones
    assert len(set(digests.values())) == 150


def test_tiles_are_filled_and_split():
    rng = np.random.default_rng(0)
    model = {
        str(rows): jnp.asarray(rng.standard_normal((rows, 1000)).astype(np.float32))
        for rows in (1, 90, 200, 300, 600, 3000)
    }
    assert tree_digests(model, backend="device") == tree_digests(model, backend="host")


def test_chunk_digests():
    array = np.random.default_rng(0).standard_normal((1500, 1000)).astype(np.float32)
    found = tree.leaf_dict(tree.flatten({"w": jnp.asarray(array), "n": 3}))
    on_host = digest_leaves(found, backend="host")
    assert digest_leaves(found, backend="device") == on_host
    assert len(on_host["w"].chunks) == 2
    assert on_host["n"].chunks == ()
    assert math.prod(map(len, on_host["w"].chunks)) == 32 * 32


def test_the_faster_backend_is_used(monkeypatch):
    used = []
    monkeypatch.setattr(
        leaves,
        "digest_on_devices",
        lambda arrays: used.append(len(arrays)) or device.digest_on_devices(arrays),
    )
    model = {"jax": jnp.arange(3), "numpy": np.arange(3)}
    expected = tree_digests(model)
    assert used == []  # CPU devices: the host
    monkeypatch.setattr(leaves, "faster_on", lambda device: "device")
    assert tree_digests(model) == expected
    assert used == [1]


def test_speed_report():
    (speed,) = speed_report()
    assert speed.kind == jax.devices()[0].device_kind
    assert speed.devices == 8
    assert speed.backend == "host"
    assert speed.host > speed.device > 0


def test_float_nans_of_every_payload_reach_the_digest():
    quiet, other = (
        np.asarray([bits], np.uint32).view(np.float32) for bits in (0x7FC00000, 0x7FA00001)
    )
    digests = tree_digests([jnp.asarray(quiet), jnp.asarray(other)], backend="device")
    assert digests == tree_digests([quiet, other])
    assert digests["0"] != digests["1"]


def test_examples_in_docstrings_are_right():
    assert tree_digests({"w": jnp.zeros(3)})["w"].startswith("5338da9cd8d2f175")
    assert "5338da9cd8d2f175" in str(tree_digests.__doc__)
