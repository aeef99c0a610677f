"""Restoring into a given tree: conversions, shardings, and what does not fit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from vcjax import errors, tree

DOWN = [
    (np.float32(1.5), np.int32(0)),
    (np.ones(2, np.complex64), np.ones(2, np.float32)),
    (np.ones(2, np.int8), np.ones(2, bool)),
    (1.5, 0),
    (2, True),
    (np.float32(1.0), 1),
    ("a", b"a"),
    ("a", jnp.ones(())),
    (np.uint32(1), "a"),
]


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def restore(value: object, like: object, **options: Any) -> Any:
    return tree.unflatten_like(tree.flatten(value), like, **options)


@pytest.mark.parametrize("abstract", [False, True])
def test_arrays_go_to_the_shardings_of_like(mesh, abstract):
    value = {"w": np.arange(64.0, dtype=np.float32).reshape(8, 8), "b": np.ones(3, np.int32)}
    placed = {
        "w": jax.device_put(np.zeros((8, 8), np.float32), NamedSharding(mesh, P("x", "y"))),
        "b": jax.device_put(np.zeros(3, np.int32), NamedSharding(mesh, P())),
    }
    like = tree.abstract(placed) if abstract else placed
    back = restore(value, like)
    for name in value:
        assert back[name].sharding == placed[name].sharding
        np.testing.assert_array_equal(back[name], value[name])
    again = tree.flatten(back)
    np.testing.assert_array_equal(tree.canonical(tree.leaf_dict(again)["w"]), value["w"])


def test_sharded_keys_come_back_sharded(mesh):
    sharding = NamedSharding(mesh, P("x"))
    keys = jax.device_put(jax.random.split(jax.random.key(0), 4), sharding)
    for like in (keys, tree.abstract(keys)):
        back = restore(jax.random.split(jax.random.key(0), 4), like)
        assert back.sharding == sharding
        assert (back == keys).all()


def test_an_uncommitted_target_stays_uncommitted_and_a_device_is_kept():
    assert not restore(np.ones(2, np.float32), jnp.zeros(2)).committed
    assert not restore(np.ones(2, np.float32), jax.ShapeDtypeStruct((2,), jnp.float32)).committed
    there = jax.device_put(np.zeros(2, np.float32), jax.devices()[3])
    back = restore(np.ones(2, np.float32), there)
    assert back.committed
    assert back.sharding == SingleDeviceSharding(jax.devices()[3])


def test_a_donated_array_serves_as_like(mesh):
    sharding = NamedSharding(mesh, P("x"))
    like = {"a": jax.device_put(jnp.zeros(8), sharding), "k": jax.random.key(0)}
    for leaf in like.values():
        leaf.delete()
    back = restore({"a": np.ones(8, np.float32), "k": jax.random.key(5)}, like)
    assert back["a"].sharding == sharding
    assert back["k"] == jax.random.key(5)


def test_an_abstract_mesh_needs_a_mesh_to_restore_on():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    array = jax.device_put(np.arange(8.0, dtype=np.float32), NamedSharding(mesh, P("x")))
    like = jax.eval_shape(lambda x: x * 2, array)
    with pytest.raises(errors.StructureError, match="set_mesh"):
        restore(array, like)
    with jax.set_mesh(mesh):
        assert restore(array, like).sharding == array.sharding


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("source", [np.arange(4), np.arange(4.0), np.array([True, False] * 2)])
def test_arrays_are_cast_to_the_dtype_of_like(source, dtype):
    target = np.zeros(4, jnp.dtype(dtype))
    back = restore(source, target)
    assert type(back) is np.ndarray
    assert back.dtype == target.dtype
    np.testing.assert_array_equal(back, source.astype(target.dtype))
    on_device = restore(source, jax.ShapeDtypeStruct((4,), target.dtype))
    assert isinstance(on_device, jax.Array)
    assert on_device.dtype == target.dtype


def test_a_cast_beyond_the_range_is_infinite_and_silent():
    assert restore(np.array([1e300]), np.zeros(1, np.float32))[0] == np.inf
    assert restore(1e300, jnp.float32(0)) == np.inf


@pytest.mark.parametrize(
    ("value", "like"),
    [
        (np.int32(3), 0),
        (jnp.int32(3), 0.0),
        (np.array(3), 1j),
        (jnp.bfloat16(3), 0.0),
        (np.bool_(True), False),
        (3, 0.0),
        (True, 0),
        (3, jnp.float32(0)),
        (3, np.int8(0)),
        (3, np.array(0.0)),
        (3.0, jax.ShapeDtypeStruct((), jnp.bfloat16)),
        ("a", "b"),
        ("a", np.str_("b")),
        (b"a", b"b"),
        (10**40, 0),
    ],
)
def test_numbers_and_0d_arrays_convert_into_each_other(value, like):
    back = restore({"a": value}, {"a": like})["a"]
    assert isinstance(back, jax.Array if isinstance(like, jax.ShapeDtypeStruct) else type(like))
    assert getattr(back, "dtype", None) == getattr(like, "dtype", None)
    assert back == value


@pytest.mark.parametrize(("value", "like"), DOWN)
def test_nothing_is_cast_down(value, like):
    with pytest.raises(errors.StructureError, match="does not convert"):
        restore({"a": value}, {"a": like})


def test_an_integer_out_of_range_is_an_error():
    with pytest.raises(errors.StructureError, match="out of the range of int32"):
        restore({"a": 2**40}, {"a": jnp.int32(0)})


def test_everything_that_does_not_fit_is_listed_at_once():
    value = {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3), "step": 1, "same": 1}
    like = {"kernel": np.ones((3, 2), np.float32), "bais": np.ones(3), "step": [1], "same": 2}
    with pytest.raises(errors.StructureError) as caught:
        restore(value, like)
    assert caught.value.problems == (
        "kernel: stored float32[2,3], like= has float32[3,2]",
        "bais: missing, like= has float64[3] (stored is bias)",
        "step/0: missing, like= has int (stored is step)",
        "bias: extra, stored float64[3]",
        "step: extra, stored int",
    )
    assert caught.value.hint


def test_extra_leaves_are_ignored_only_if_asked_for():
    with pytest.raises(errors.StructureError, match=r"b: extra[^$]*strict=False"):
        restore({"a": 1, "b": 2}, {"a": 0})
    assert restore({"a": 1, "b": 2}, {"a": 0}, strict=False) == {"a": 1}
    with pytest.raises(errors.StructureError, match="b: missing"):
        restore({"a": 1}, {"a": 0, "b": 0}, strict=False)


def test_none_matches_none_only():
    assert restore({"a": None, "b": 1}, {"a": None, "b": 0}) == {"a": None, "b": 1}
    with pytest.raises(errors.StructureError, match="a: missing"):
        restore({"a": None}, {"a": 1})
    with pytest.raises(errors.StructureError, match="a: extra"):
        restore({"a": 1}, {"a": None})


def test_a_target_that_is_no_leaf_is_named():
    with pytest.raises(errors.StructureError, match="f: stored int, like= has a function"):
        restore({"f": 1}, {"f": lambda x: x})


def test_a_whole_tree_may_be_one_leaf():
    assert restore(3, 0) == 3
    with pytest.raises(errors.StructureError, match="missing"):
        restore([3], 0)


def test_leaves_can_be_checked_before_and_placed_one_by_one():
    root = tree.flatten({"a": np.ones(2, np.float32), "b": 1})
    into = tree.template({"a": jnp.zeros(2), "b": 0})
    tree.check({p: leaf.spec for p, leaf in tree.iter_leaves(root)}, into.targets, strict=True)
    back = into.build({p: tree.place(leaf, into.targets[p]) for p, leaf in tree.iter_leaves(root)})
    assert back["b"] == 1
    assert isinstance(back["a"], jax.Array)
    with pytest.raises(errors.StructureError, match="a: stored float32"):
        tree.place(tree.leaf_dict(root)["a"], jnp.zeros(3), "a")


def test_an_aligned_host_buffer_becomes_a_jax_array_without_a_copy():
    memory = np.empty(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64  # XLA on CPU uses 64-byte aligned buffers in place
    buffer = memory[start : start + 4096].view(np.float32)
    buffer[:] = 1
    leaf = tree.Leaf(tree.LeafSpec("float32", (1024,), "jax"), buffer)
    for back in (tree.unflatten(leaf), tree.unflatten_like(leaf, jnp.zeros(1024))):
        assert back.unsafe_buffer_pointer() == buffer.ctypes.data
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(tree.unflatten(leaf))
    assert doubled.sum() == 2048
    assert buffer.sum() == 1024


def test_a_read_only_buffer_comes_back_writable():
    data = np.frombuffer(bytes(8), np.float32)
    leaf = tree.Leaf(tree.LeafSpec("float32", (2,), "numpy"), data)
    assert tree.unflatten(leaf).flags.writeable
    assert tree.unflatten_like(leaf, np.ones(2, np.float32)).flags.writeable
