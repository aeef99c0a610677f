"""Restoring onto anything: dtypes, shardings, parts, transformations; and what does not fit."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vcjax.errors import StructureError, VcjaxError

pytestmark = [  # of Orbax
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TREE = {
    "a": {"w": np.arange(16, dtype=np.float32).reshape(8, 2), "b": np.arange(4.0)},
    "c": np.int32(3) * np.ones(2, np.int32),
}


def mesh(*shape):
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(devices, ("x", "y")[: len(shape)])


def sharded(*shape):
    return NamedSharding(mesh(*shape), PartitionSpec(*("x", "y")[: len(shape)]))


@pytest.fixture
def saved(ocp, tmp_path):
    """A manager with TREE as PyTree and Standard items, and the module."""
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    args = ocp.args
    with ocp.CheckpointManager(tmp_path, options=options) as made:
        made.save(0, args=args.Composite(p=args.PyTreeSave(TREE), s=args.StandardSave(TREE)))

        def restore(name, given):
            return made.restore(0, args=args.Composite(**{name: given}))[name]

        yield ocp, restore


def struct(x, dtype=None, sharding=None):
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_casts_by_the_abstract_target(saved, dtype):
    ocp, restore = saved
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    target = jax.tree.map(lambda x: struct(x, np.dtype(dtype), sharding), TREE)
    restored = restore("s", ocp.args.StandardRestore(target))
    for got, stored in zip(jax.tree.leaves(restored), jax.tree.leaves(TREE), strict=True):
        assert isinstance(got, jax.Array)
        assert got.dtype == np.dtype(dtype)
        assert got.sharding == sharding
        np.testing.assert_array_equal(np.asarray(got), stored.astype(dtype))


def test_concrete_targets_say_the_type(saved):
    ocp, restore = saved
    target = {
        "a": {"w": jnp.zeros((8, 2)), "b": np.zeros(4, np.float32)},
        "c": np.ones(2, np.int32),
    }
    restored = restore("s", ocp.args.StandardRestore(target))
    assert isinstance(restored["a"]["w"], jax.Array)
    assert type(restored["a"]["b"]) is np.ndarray
    assert restored["a"]["b"].dtype == np.float32


def test_structs_without_sharding_give_what_was_saved(saved):
    ocp, restore = saved
    restored = restore("s", ocp.args.StandardRestore(jax.tree.map(struct, TREE)))
    assert {type(leaf) for leaf in jax.tree.leaves(restored)} == {np.ndarray}


def test_a_struct_for_a_python_number_gives_a_numpy_array(ocp, tmp_path):
    with ocp.StandardCheckpointer() as made:
        made.save(tmp_path / "x", {"rate": 0.5})
        target = {"rate": jax.ShapeDtypeStruct((), np.float32)}
        restored = made.restore(tmp_path / "x", target)
    assert type(restored["rate"]) is np.ndarray
    assert restored["rate"].dtype == np.float32
    assert restored["rate"] == 0.5


def test_a_fallback_goes_after_what_was_recorded(ocp, tmp_path):
    tree = {"w": jax.device_put(np.arange(8.0), sharded(8)), "b": np.ones(2)}
    fallback = jax.sharding.SingleDeviceSharding(jax.devices()[2])
    with ocp.CheckpointManager(tmp_path) as made:
        made.save(0, args=ocp.args.StandardSave(tree))
        made.wait_until_finished()
        for target in (None, jax.tree.map(struct, tree)):
            args = ocp.args.StandardRestore(target, fallback_sharding=fallback)
            restored = made.restore(0, args=args)
            assert restored["w"].sharding == sharded(8)
            assert type(restored["b"]) is np.ndarray


def test_shapes_that_differ(saved):
    ocp, restore = saved
    target = {
        **jax.tree.map(struct, TREE),
        "a": {"w": struct(np.zeros((6, 3))), "b": struct(np.zeros(5))},
    }
    target = jax.tree.map(lambda x: struct(x, sharding=sharded(1)), target)
    target["a"]["w"] = struct(np.zeros((6, 3), np.float32), sharding=sharded(2))
    with pytest.raises(ValueError, match=r"shape|fit"):
        restore("s", ocp.args.StandardRestore(target))
    restored = restore("s", ocp.args.StandardRestore(target, strict=False))
    expected = np.zeros((6, 3), np.float32)
    expected[:, :2] = TREE["a"]["w"][:6]
    np.testing.assert_array_equal(restored["a"]["w"], expected)
    np.testing.assert_array_equal(restored["a"]["b"], [0, 1, 2, 3, 0])


def test_missing_and_extra_keys_raise(saved):
    ocp, restore = saved
    for target in (
        {**TREE, "new": np.zeros(1)},
        {"a": TREE["a"]},
        {"a": {"w": TREE["a"]["w"]}, "c": TREE["c"]},
    ):
        for name, args in (("s", ocp.args.StandardRestore), ("p", ocp.args.PyTreeRestore)):
            with pytest.raises(ValueError, match=r"new|b|c"):
                restore(name, args(target))


def test_restore_args(saved):
    ocp, restore = saved
    args = {
        "a": {
            "w": ocp.ArrayRestoreArgs(sharding=sharded(4, 2), dtype=jnp.bfloat16),
            "b": ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.dtype("float32")),
        },
        "c": ocp.ArrayRestoreArgs(mesh=mesh(2), mesh_axes=PartitionSpec("x")),
    }
    for item in (None, TREE):
        restored = restore("p", ocp.args.PyTreeRestore(item, restore_args=args))
        w, b, c = restored["a"]["w"], restored["a"]["b"], restored["c"]
        assert (w.sharding, w.dtype) == (sharded(4, 2), jnp.bfloat16)
        assert (type(b), b.dtype) == (np.ndarray, np.dtype("float32"))
        assert c.sharding == sharded(2)
        np.testing.assert_array_equal(np.asarray(w, np.float32), TREE["a"]["w"])


def test_global_shapes(saved):
    ocp, restore = saved
    args = jax.tree.map(lambda _: ocp.RestoreArgs(), TREE)
    args["a"]["b"] = ocp.ArrayRestoreArgs(sharding=sharded(1), global_shape=(6,))
    with pytest.raises(ValueError, match=r"shape|fit"):
        restore("p", ocp.args.PyTreeRestore(restore_args=args))
    args["a"]["b"] = ocp.ArrayRestoreArgs(sharding=sharded(1), global_shape=(2,), strict=False)
    restored = restore("p", ocp.args.PyTreeRestore(restore_args=args))
    np.testing.assert_array_equal(restored["a"]["b"], [0, 1])


def test_construct_restore_args(saved):
    ocp, restore = saved
    target = jax.tree.map(lambda x: jax.device_put(x, sharded(2)), TREE)
    args = ocp.checkpoint_utils.construct_restore_args(target)
    restored = restore("p", ocp.args.PyTreeRestore(target, restore_args=args))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == sharded(2)


def test_partial_restore(saved):
    ocp, restore = saved
    part = {"a": {"w": TREE["a"]["w"]}}
    args = jax.tree.map(lambda _: ocp.RestoreArgs(), part)
    restored = restore("p", ocp.args.PyTreeRestore(part, args, partial_restore=True))
    assert list(restored) == ["a"]
    assert list(restored["a"]) == ["w"]
    np.testing.assert_array_equal(restored["a"]["w"], TREE["a"]["w"])


def test_placeholders_are_not_read(saved):
    ocp, restore = saved
    target = {"a": {"w": TREE["a"]["w"], "b": ocp.PLACEHOLDER}, "c": ocp.PLACEHOLDER}
    restored = restore("p", ocp.args.PyTreeRestore(target))
    assert restored["a"]["b"] is ocp.PLACEHOLDER
    assert restored["c"] is ocp.PLACEHOLDER
    np.testing.assert_array_equal(restored["a"]["w"], TREE["a"]["w"])


def test_empty_transforms_restore_what_is_asked_for(saved):
    ocp, restore = saved
    part = {"a": {"b": TREE["a"]["b"]}}
    args = jax.tree.map(lambda _: ocp.RestoreArgs(dtype=np.dtype("float32")), part)
    restored = restore("p", ocp.args.PyTreeRestore(part, args, transforms={}))
    assert list(restored["a"]) == ["b"]
    assert restored["a"]["b"].dtype == np.float32


def test_transforms(saved):
    ocp, restore = saved
    item = {"renamed": np.zeros(4), "new": np.full(2, 5.0), "sum": np.zeros(2), "c": np.zeros(2)}
    args = jax.tree.map(lambda _: ocp.RestoreArgs(), item)
    transforms = {
        "renamed": ocp.Transform(original_key="a/b"),
        "new": ocp.Transform(use_fallback=True),
        "sum": ocp.RestoreTransform(
            multi_value_fn=lambda key, tree, arg: tree["a"]["w"].sum(0),
            multi_value_fn_input_args={"a/w": ocp.RestoreArgs(restore_type=np.ndarray)},
        ),
    }
    restored = restore("p", ocp.args.PyTreeRestore(item, args, transforms=transforms))
    assert sorted(restored) == ["c", "new", "renamed", "sum"]
    np.testing.assert_array_equal(restored["renamed"], TREE["a"]["b"])
    np.testing.assert_array_equal(restored["new"], [5, 5])
    np.testing.assert_array_equal(restored["sum"], TREE["a"]["w"].sum(0))
    with pytest.raises(ValueError, match="item"):
        restore("p", ocp.args.PyTreeRestore(restore_args=args, transforms=transforms))


def test_save_args_cast(ocp, tmp_path):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    cast = jax.tree.map(lambda _: ocp.SaveArgs(dtype=np.dtype("float16")), TREE)
    cast["c"] = ocp.SaveArgs(chunk_byte_size=64)
    with ocp.CheckpointManager(tmp_path, options=options) as made:
        made.save(0, args=ocp.args.PyTreeSave(TREE, cast))
        restored = made.restore(0, args=ocp.args.PyTreeRestore())
        assert restored["a"]["w"].dtype == np.float16
        assert restored["c"].dtype == np.int32


@pytest.mark.parametrize("shape", [(8,), (4, 2), (1,)])
def test_shardings_come_back_and_can_be_changed(ocp, tmp_path, shape):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    tree = jax.tree.map(lambda x: jax.device_put(x, sharded(2)), TREE)
    tree["c"] = jax.device_put(TREE["c"], NamedSharding(mesh(2, 4), PartitionSpec("x")))
    both = NamedSharding(mesh(2, 2), PartitionSpec(("x", "y")))
    tree["a"]["b"] = jax.device_put(TREE["a"]["b"], both)
    with ocp.CheckpointManager(tmp_path, options=options) as made:
        made.save(0, args=ocp.args.StandardSave(tree))
        metadata = made.item_metadata(0)
        assert metadata["a"]["w"].sharding.to_jax_sharding() == sharded(2)
        assert metadata["c"].sharding.to_jax_sharding() == tree["c"].sharding
        assert metadata["a"]["b"].sharding.to_jax_sharding() == both
        assert made.restore(0)["a"]["w"].sharding == sharded(2)
        structs = jax.tree.map(struct, tree)
        as_saved = made.restore(0, args=ocp.args.StandardRestore(structs))
        assert as_saved["c"].sharding == tree["c"].sharding
        args = ocp.checkpoint_utils.construct_restore_args(
            structs, jax.tree.map(lambda m: m.sharding.to_jax_sharding(), metadata.tree)
        )
        assert args["a"]["w"].sharding == sharded(2)
        target = jax.tree.map(struct, tree)
        target["a"]["w"] = struct(TREE["a"]["w"], sharding=sharded(*shape))
        restored = made.restore(0, args=ocp.args.StandardRestore(target))
        assert restored["a"]["w"].sharding == sharded(*shape)
        np.testing.assert_array_equal(restored["a"]["w"], TREE["a"]["w"])


# -- ours alone ----------------------------------------------------------------


@pytest.fixture
def made(ours, tmp_path):
    options = ours.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ours.CheckpointManager(tmp_path, options=options) as made:
        yield made


def test_every_misfit_is_named_with_both_shapes(ours, made):
    made.save(0, args=ours.args.StandardSave(TREE))
    target = {
        "a": {"w": struct(np.zeros((8, 3))), "b": struct(np.zeros(5))},
        "d": struct(np.zeros(1)),
    }
    with pytest.raises(StructureError) as caught:
        made.restore(0, args=ours.args.StandardRestore(target))
    text = str(caught.value)
    for part in (
        "a/w: stored float32[8,2], the target has float64[8,3]",
        "a/b: stored float64[4], the target has float64[5]",
        "d: missing",
        "c: extra, stored int32[2]",
    ):
        assert part in text
    assert len(caught.value.problems) == 4


def test_metadata_and_shardings_read_no_leaf(ours, made, monkeypatch):
    tree = jax.tree.map(lambda x: jax.device_put(x, sharded(2)), TREE)
    made.save(0, args=ours.args.StandardSave(tree), metrics={"loss": 1})
    reader = ours.CheckpointManager(made.directory)
    monkeypatch.setattr(reader.repo.objects, "read", None)
    monkeypatch.setattr(reader.repo.objects, "read_headers", None)
    metadata = reader.item_metadata(0)
    assert metadata["a"]["w"].sharding.to_jax_sharding() == sharded(2)
    assert reader.metadata(0).metrics == {"loss": 1}


def test_identity_does_not_depend_on_sharding(ours, made):
    for step, shape in enumerate([(1,), (2,), (2, 2)]):
        tree = jax.tree.map(lambda x, s=shape: jax.device_put(x, sharded(*s[:1])), TREE)
        made.save(step, args=ours.args.StandardSave(tree))
    commits = list(made.repo.log())
    assert len({commit.tree for commit in commits}) == 1
    assert len({commit.manifest for commit in commits}) == 1
    assert len({commit.digest for commit in commits}) == 3


def test_a_sharding_whose_devices_are_not_here(ours, made, monkeypatch):
    made.save(0, args=ours.args.StandardSave({"w": jax.device_put(np.arange(8.0), sharded(8))}))
    monkeypatch.setattr(jax, "devices", lambda *a: [jax.local_devices()[0]])
    assert len(made.restore(0)["w"].sharding.device_set) == 1
    fallback = jax.sharding.SingleDeviceSharding(jax.local_devices()[2])
    args = ours.args.StandardRestore(fallback_sharding=fallback)
    assert made.restore(0, args=args)["w"].sharding == fallback


Pair = collections.namedtuple("Pair", ["first", "second"])


def test_containers_come_back_without_a_target(ours, made):
    state = optax.adam(0.1).init({"w": jnp.ones(2)})
    tree = {1: [np.ones(1), (np.zeros(2), 3)], 2: Pair(1.5, None), 3: state}
    made.save(0, args=ours.args.StandardSave(tree))
    for args in (None, ours.args.StandardRestore(), ours.args.PyTreeRestore()):
        restored = made.restore(0, args=args)
        assert jax.tree.structure(restored) == jax.tree.structure(tree)
        assert type(restored[2]) is Pair
    args = {1: [ours.RestoreArgs(restore_type=jax.Array), (None, None)]}
    restored = made.restore(0, args=ours.args.PyTreeRestore(restore_args=args))
    assert isinstance(restored[1][0], jax.Array)
    with pytest.raises(StructureError, match="nowhere"):
        made.restore(0, args=ours.args.PyTreeRestore(restore_args={"nowhere": ours.RestoreArgs()}))


def test_typed_keys_in_trees(ours, made):
    tree = {"key": jax.random.split(jax.random.key(1), 4), "rbg": jax.random.key(2, impl="rbg")}
    made.save(0, args=ours.args.StandardSave(tree))
    metadata = made.item_metadata(0)
    assert metadata["key"].shape == (4,)
    assert jnp.issubdtype(metadata["rbg"].dtype, jax.dtypes.prng_key)
    target = jax.tree.map(lambda k: jax.ShapeDtypeStruct(k.shape, k.dtype), tree)
    for args in (None, ours.args.StandardRestore(target), ours.args.PyTreeRestore(tree)):
        restored = made.restore(0, args=args)
        for name, key in tree.items():
            np.testing.assert_array_equal(
                jax.random.key_data(restored[name]), jax.random.key_data(key)
            )
            assert restored[name].dtype == key.dtype


def test_numbers_become_what_is_asked_for(ours, made):
    made.save(0, args=ours.args.StandardSave({"i": 3, "f": 2.5, "s": "text", "z": np.float32(7)}))

    def restore(**target):
        stored = {"i": 3, "f": 2.5, "s": "", "z": np.float32(0), **target}
        return made.restore(0, args=ours.args.StandardRestore(stored))

    assert restore(i=0.0)["i"] == 3.0
    assert type(restore(f=0)["f"]) is int
    assert restore(i=jax.ShapeDtypeStruct((), jnp.int32))["i"].dtype == jnp.int32
    assert type(restore(z=0)["z"]) is int
    assert restore()["s"] == "text"
    with pytest.raises(StructureError, match="s: stored str"):
        restore(s=1)
    with pytest.raises(StructureError, match="z: stored float32"):
        restore(z=np.zeros(2))


def test_what_cannot_be_had(ours, made):
    made.save(0, args=ours.args.PyTreeSave({"z": np.ones(2, np.complex64)}))
    args = {"z": ours.RestoreArgs(dtype=np.dtype("float32"))}
    with pytest.raises(StructureError, match="complex64"):
        made.restore(0, args=ours.args.PyTreeRestore(restore_args=args))
    with pytest.raises(VcjaxError, match="legacy_transform_fn"):
        made.restore(0, args=ours.args.PyTreeRestore(legacy_transform_fn=lambda *a: a))


def test_like_and_the_simple_form(made):
    made.save(0, TREE)
    made.save(1, {"a": 1})
    target = jax.tree.map(lambda x: struct(x, sharding=sharded(2)), TREE)
    assert made.restore(0, like=target)["c"].sharding == sharded(2)
    assert made.restore(0, target)["c"].sharding == sharded(2)
    assert made.restore() == {"a": 1}
