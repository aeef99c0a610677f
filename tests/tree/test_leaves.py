"""Leaf kinds and dtypes: what is recorded, canonical bytes, round trips to the bit."""

import enum

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vcjax import errors, tree
from vcjax.tree import dtypes

from .roots import leaf_of

SUB_BYTE = {"int1": 1, "int2": 2, "int4": 4, "uint1": 1, "uint2": 2, "uint4": 4}
NOT_IN_JAX = {"float6_e2m3fn", "float6_e3m2fn", "int1", "uint1", "complex32", "bcomplex32"}


def every_pattern(name: str) -> np.ndarray:
    """An array whose elements run through byte patterns, NaN payloads and −0.0 among them."""
    dtype = tree.storage_dtype(name)
    if name == "bool":
        return np.array([True, False, True])
    count = 256 // dtype.itemsize
    values = np.arange(count * dtype.itemsize, dtype=np.uint32).astype(np.uint8).view(dtype)
    return dtypes.normalise(values.copy())


def raw(array: object) -> bytes:
    return np.asarray(array).tobytes()


@pytest.mark.parametrize("name", dtypes.names())
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, -1)])
def test_numpy_arrays_come_back_to_the_bit(name, shape):
    values = every_pattern(name)
    if shape == (2, -1):
        values = values[: len(values) // 2 * 2].reshape(2, -1)
    else:
        values = np.resize(values, shape).astype(values.dtype)
    leaf = leaf_of(values)
    assert leaf.spec == tree.LeafSpec(name, values.shape, "numpy")
    stored = tree.canonical(leaf)
    assert stored.shape == values.shape
    assert stored.flags.c_contiguous
    back = tree.unflatten(tree.Leaf(leaf.spec, stored.copy()))
    assert type(back) is np.ndarray
    assert back.dtype == values.dtype
    assert back.flags.writeable
    assert raw(back) == raw(values)


@pytest.mark.parametrize("name", sorted(set(dtypes.names()) - NOT_IN_JAX))
@pytest.mark.parametrize("x64", [True, False])
def test_jax_arrays_come_back_to_the_bit(name, x64):
    with jax.enable_x64(True):
        value = jax.device_put(every_pattern(name))
    leaf = leaf_of(value)
    assert leaf.spec == tree.LeafSpec(name, value.shape, "jax")
    stored = tree.canonical(leaf).copy()
    with jax.enable_x64(x64):
        back = tree.unflatten(tree.Leaf(leaf.spec, stored))
        exact = tree.unflatten_like(tree.Leaf(leaf.spec, stored), value)
    wide = name in {"int64", "uint64", "float64", "complex128"}
    assert isinstance(back, np.ndarray if wide and not x64 else jax.Array)
    assert isinstance(exact, jax.Array)
    for result in (back, exact):
        assert result.dtype == value.dtype
        assert raw(dtypes.normalise(np.array(result))) == raw(stored)


@pytest.mark.parametrize("name", dtypes.names())
def test_numpy_scalars_come_back_to_the_bit(name):
    for value in every_pattern(name)[-3:]:
        leaf = leaf_of(value)
        assert leaf.spec == tree.LeafSpec(name, (), "scalar")
        stored = tree.canonical(leaf)
        assert stored.shape == ()
        back = tree.unflatten(tree.Leaf(leaf.spec, stored.copy()))
        assert type(back) is type(value)
        assert raw(back) == raw(value)


@pytest.mark.parametrize("value", [0, -1, 10**400, 1.5, -0.0, True, False, 1j, "", "é", b"\0", b""])
def test_python_values_come_back_exactly(value):
    root = tree.flatten({"a": value})
    leaf = tree.leaf_dict(root)["a"]
    assert leaf.spec == tree.LeafSpec(type(value).__name__, (), "python")
    assert leaf.spec.is_value
    back = tree.unflatten(root)["a"]
    assert type(back) is type(value)
    assert repr(back) == repr(value)
    with pytest.raises(TypeError, match="no canonical bytes"):
        tree.canonical(leaf)


def test_numpy_text_scalars_become_python_text():
    back = tree.unflatten(tree.flatten([np.str_("a"), np.bytes_(b"b")]))
    assert back == ["a", b"b"]
    assert [type(x) for x in back] == [str, bytes]


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">u8", ">c16"])
def test_big_endian_is_the_same_content_as_native(dtype):
    big = np.array([1, 2, 3]).astype(dtype)
    native = big.astype(big.dtype.newbyteorder("<"))
    a, b = leaf_of(big), leaf_of(native)
    assert a.spec == b.spec
    assert raw(tree.canonical(a)) == raw(tree.canonical(b))
    assert tree.unflatten(a).dtype.isnative
    assert tree.unflatten_like(b, big).dtype == big.dtype


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::-1, ::-2],
        lambda a: a[:, 1:3],
        lambda a: np.broadcast_to(a, (2, 4, 6)),
    ],
    ids=["transposed", "negative", "sliced", "broadcast"],
)
def test_strides_do_not_matter(view):
    strided = view(np.arange(24, dtype=np.float32).reshape(4, 6))
    stored = tree.canonical(leaf_of(strided))
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, strided)


@pytest.mark.parametrize("name", SUB_BYTE)
def test_upper_bits_of_sub_byte_values_do_not_matter(name):
    bits = SUB_BYTE[name]
    dirty = np.arange(256, dtype=np.uint8)
    stored = tree.canonical(leaf_of(dirty.view(getattr(ml_dtypes, name))))
    values = dirty & (2**bits - 1)
    if name.startswith("int"):
        values = np.where(values >= 2 ** (bits - 1), values.astype(int) - 2**bits, values)
    np.testing.assert_array_equal(stored.view(np.uint8), values.astype(np.uint8))


@pytest.mark.parametrize("name", ["float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"])
def test_upper_bits_of_small_floats_are_cleared(name):
    dirty = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name))
    assert tree.canonical(leaf_of(dirty)).view(np.uint8).max() == 2 ** int(name[5]) - 1


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_bool_is_one_byte_0_or_1(shape):
    dirty = np.full(shape, 7, np.uint8).view(np.bool_)
    stored = tree.canonical(leaf_of(dirty))
    assert stored.shape == shape
    assert set(raw(stored)) == {1}


def test_jax_and_numpy_agree_on_int4():
    values = np.arange(-8, 8).astype(ml_dtypes.int4)
    on_host, on_device = leaf_of(values), leaf_of(jnp.asarray(values))
    assert raw(tree.canonical(on_host)) == raw(tree.canonical(on_device))


def test_canonical_does_not_copy_what_is_in_order():
    array = np.arange(1000.0)
    assert np.shares_memory(tree.canonical(leaf_of(array)), array)
    array.flags.writeable = False
    assert np.shares_memory(tree.canonical(leaf_of(array)), array)
    on_cpu = jnp.arange(1000.0)
    leaf = leaf_of(on_cpu)
    assert leaf.data is on_cpu
    address = tree.canonical(leaf).__array_interface__["data"][0]
    assert address == on_cpu.unsafe_buffer_pointer()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_typed_keys_come_back(impl, shape):
    keys = jax.random.key(7, impl=impl)
    keys = jax.random.split(keys, shape) if shape else keys
    leaf = leaf_of(keys)
    words = jax.random.key_data(keys)
    assert leaf.spec == tree.LeafSpec(f"key<{impl}>", words.shape, "jax")
    assert tree.storage_dtype(leaf.spec.dtype) == np.uint32
    stored = tree.Leaf(leaf.spec, tree.canonical(leaf).copy())
    abstract = jax.ShapeDtypeStruct(keys.shape, keys.dtype)
    for back in (
        tree.unflatten(stored),
        tree.unflatten_like(stored, keys),
        tree.unflatten_like(stored, abstract),
    ):
        assert back.dtype == keys.dtype
        assert back.shape == keys.shape
        assert raw(jax.random.key_data(back)) == raw(words)


def test_keys_convert_to_their_words_and_back():
    keys = jax.random.key(3)
    words = jax.random.key_data(keys)
    assert raw(tree.unflatten_like(tree.flatten(keys), words)) == raw(words)
    assert tree.unflatten_like(tree.flatten(words), keys) == keys
    with pytest.raises(errors.StructureError, match="key<rbg>"):
        tree.unflatten_like(tree.flatten(keys), jax.random.key(3, impl="rbg"))


def test_a_key_of_an_unknown_implementation_is_an_error():
    leaf = tree.Leaf(tree.LeafSpec("key<nobodys>", (2,), "jax"), np.zeros(2, np.uint32))
    with pytest.raises(errors.TreeError, match="nobodys"):
        tree.unflatten(leaf)


@pytest.mark.parametrize("name", ["float128", "object", "datetime64[s]", "", "key<>", "str"])
def test_an_unknown_dtype_name_is_refused(name):
    with pytest.raises(errors.UnknownFormatError, match="unknown array dtype"):
        tree.storage_dtype(name)


def test_itemsize():
    assert [tree.itemsize(n) for n in ("int4", "bfloat16", "complex64", "key<rbg>")] == [1, 2, 8, 4]


class Colour(enum.IntEnum):
    RED = 1


class Word(str):
    __slots__ = ()


def deleted() -> jax.Array:
    array = jnp.ones(3) + 1
    array.delete()
    return array


REFUSED = {
    "function": (lambda: len, "function"),
    "lambda": (lambda: lambda x: x, "static"),
    "class": (lambda: dict, "function or class"),
    "object": (object, "neither an array nor a plain value"),
    "set": (lambda: {1}, "neither an array"),
    "enum": (lambda: Colour.RED, "subclass of int"),
    "str subclass": (lambda: Word("a"), "subclass of str"),
    "object array": (lambda: np.array([None]), "dtype object"),
    "text array": (lambda: np.array(["a"]), "list of str"),
    "dates": (lambda: np.array(["2020-01-01"], "M8[D]"), "int64"),
    "date": (lambda: np.datetime64("2020-01-01"), "int64"),
    "structured": (lambda: np.zeros(2, [("a", "f4")]), "fields as separate"),
    "structured scalar": (lambda: np.zeros(2, [("a", "f4")])[0], "fields as separate"),
    "longdouble": (lambda: np.zeros(2, np.longdouble), "float64"),
    "masked": (lambda: np.ma.masked_array([1.0], [True]), "MaskedArray"),
    "abstract": (lambda: jax.ShapeDtypeStruct((2,), jnp.float32), "has no data"),
    "deleted": (deleted, "donated"),
    "ref": (lambda: jax.new_ref(jnp.ones(2)), "mutable"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stored_is_refused_by_path_with_a_hint(kind):
    make, words = REFUSED[kind]
    with pytest.raises(errors.UnsupportedLeafError, match="a/b%2Fc/1") as caught:
        tree.flatten({"a": {"b/c": [1, make()]}})
    assert words in str(caught.value)
    assert caught.value.path == "a/b%2Fc/1"
    assert caught.value.hint


def test_tracers_are_refused():
    with pytest.raises(errors.UnsupportedLeafError, match=r"outside of jax\.jit"):
        jax.jit(tree.flatten)({"x": jnp.ones(2)})


def test_arrays_with_shards_elsewhere_are_refused(monkeypatch):
    array = jnp.ones(2)
    monkeypatch.setattr(type(array), "is_fully_addressable", False)
    monkeypatch.setattr(type(array), "is_fully_replicated", False)
    with pytest.raises(errors.UnsupportedLeafError, match="process_allgather"):
        tree.flatten({"x": array})
