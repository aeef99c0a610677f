"""Files that the formats' own libraries write and read."""

import io
import json
import struct
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from flax import linen, nnx, serialization
from flax.core import freeze
from flax.training import train_state

from vcjax import errors, formats
from vcjax.formats import arrays
from vcjax.formats import msgpack as vcjax_msgpack

pytestmark = pytest.mark.smoke


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    elif isinstance(left, np.ndarray | np.generic):
        assert (left.dtype, left.shape, left.tobytes()) == (
            right.dtype,
            right.shape,
            right.tobytes(),
        )
    else:
        assert repr(left) == repr(right)


def trained_state() -> train_state.TrainState:
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(linen.relu(linen.Dense(11)(x)))

    model = Model()
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    schedule = optax.chain(optax.clip(1.0), optax.adamw(1e-3, mu_dtype=jnp.bfloat16))
    return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=schedule)


class TestSafetensors:
    def arrays(self) -> dict:
        return {
            "encoder.layer/0.weight": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
            "scalar": jnp.float32(2.5),
            "empty": jnp.zeros((0, 4), jnp.int8),
            "flag": jnp.array([True, False]),
        }

    def test_reads_what_the_library_writes(self, tmp_path):
        path = tmp_path / "model.safetensors"
        safetensors.flax.save_file(self.arrays(), path, metadata={"format": "flax"})
        found = formats.read(path)
        assert found.metadata == {"format": "flax"}
        assert_same(found.tree, {name: np.asarray(leaf) for name, leaf in self.arrays().items()})

    def test_the_library_reads_what_we_write(self, tmp_path):
        path = tmp_path / "model.safetensors"
        formats.write(path, self.arrays(), {"b": "1", "a": "2"})
        found = safetensors.flax.load_file(path)
        for name, leaf in self.arrays().items():
            assert found[name].dtype == leaf.dtype
            np.testing.assert_array_equal(found[name], leaf)
        with safetensors.safe_open(path, "np") as opened:
            assert opened.metadata() == {"a": "2", "b": "1"}

    def test_equals_the_library_byte_for_byte(self, tmp_path):
        leaves = {"b": np.ones((2, 3), np.float32), "a": np.ones(3, np.int8)}
        formats.write(tmp_path / "file.safetensors", leaves, {"k": "v"})
        expected = safetensors.numpy.save(leaves, {"k": "v"})
        assert (tmp_path / "file.safetensors").read_bytes() == expected

    def test_arrays_are_views_of_the_file(self, tmp_path):
        path = tmp_path / "file.safetensors"
        formats.write(path, {"a": np.ones(1000)})
        array = formats.read(path).tree["a"]
        assert not array.flags.owndata
        assert not array.flags.writeable

    def raw(self, dtype: str, shape: list[int], data: bytes, pad: int = 0) -> bytes:
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
        header = json.dumps({"w": entry}).encode() + b" " * pad
        return struct.pack("<Q", len(header)) + header + data

    def test_badly_aligned_data_are_copied(self, tmp_path):
        path = tmp_path / "file.safetensors"
        for pad in range(8):
            path.write_bytes(self.raw("F64", [2], np.array([1.5, 2.5]).tobytes(), pad))
            array = formats.read(path).tree["w"]
            assert array.flags.aligned
            assert array.tolist() == [1.5, 2.5]

    def test_float4_pairs(self, tmp_path):
        path = tmp_path / "file.safetensors"
        path.write_bytes(self.raw("F4", [4], b"\x21\x73"))
        array = formats.read(path).tree["w"]
        assert array.dtype == ml_dtypes.float4_e2m1fn
        assert array.astype(float).tolist() == [0.5, 1.0, 1.5, 6.0]
        formats.write(tmp_path / "again.safetensors", {"w": array})
        assert (tmp_path / "again.safetensors").read_bytes()[-2:] == b"\x21\x73"

    def test_float6_is_refused_by_name(self, tmp_path):
        path = tmp_path / "file.safetensors"
        path.write_bytes(self.raw("F6_E2M3", [4], b"\0\0\0"))
        with pytest.raises(errors.FormatError, match="'w' has the dtype F6_E2M3"):
            formats.read(path)

    def test_reserved_name(self, tmp_path):
        with pytest.raises(errors.FormatError, match="__metadata__"):
            formats.write(tmp_path / "file.safetensors", {"__metadata__": np.ones(1)})


def flax_bytes(tree) -> bytes:
    """What Flax writes when it sorts dict entries."""
    return serialization.msgpack_serialize(serialization.to_state_dict(tree))


class Pair(NamedTuple):
    left: object
    right: object


class TestMsgpack:
    def tree(self) -> dict:
        values = {"int": -(2**63), "uint": 2**64 - 1, "float": float("nan"), "bool": True}
        values |= {"none": None, "str": "é\0", "bytes": b"\xff", "complex": 1 - 2j, "inf": -np.inf}
        scalars = {name: np.dtype(name).type(1) for name in ("float32", "int8", "bool", "bfloat16")}
        zeros = {name: np.zeros((2, 3), dtype) for name, dtype in arrays.ML_DTYPES.items()}
        return {"values": values, "scalars": scalars, "arrays": zeros, "empty": {}, "": np.ones(())}

    def test_flax_and_vcjax_write_the_same_bytes(self, tmp_path):
        path = tmp_path / "file.msgpack"
        state = trained_state()
        trees = (
            *(self.tree(), state, state.opt_state, freeze(state.params), {}),
            {"list": [np.ones(2)] * 12, "tuple": (), "pair": Pair(jnp.ones(1), [None])},
        )
        for tree in trees:
            formats.write(path, tree)
            assert path.read_bytes() == flax_bytes(tree)
            found = formats.read(path)
            path.write_bytes(serialization.to_bytes(tree))
            assert_same(formats.read(path).tree, found.tree)
            assert found.metadata == {}
            assert_same(found.tree, serialization.msgpack_restore(path.read_bytes()))
            assert formats.format_of(path).name == "msgpack"

    def test_a_train_state_comes_back_through_flax(self, tmp_path):
        path, state = tmp_path / "state.msgpack", trained_state()
        formats.write(path, state)
        restored = serialization.from_bytes(state, path.read_bytes())
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        read = serialization.from_state_dict(state, formats.read(path).tree)
        jax.tree.map(np.testing.assert_array_equal, read, state)

    def test_an_nnx_state_is_written_as_its_pure_dict(self, tmp_path):
        model = nnx.Sequential(
            nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        )
        state, path = nnx.state(model), tmp_path / "file.msgpack"
        formats.write(path, {"model": state})
        pure = nnx.to_pure_dict(state)
        assert path.read_bytes() == flax_bytes({"model": pure})

    def test_a_tree_that_is_no_state_dict_is_kept(self, tmp_path):
        path = tmp_path / "file.msgpack"
        tree = {"list": [np.ones(2), {"a": 1}, []], "ints": {2: np.zeros(1), -1: None}}
        packed = serialization.msgpack_serialize(tree)
        path.write_bytes(packed)
        found = formats.read(path)
        assert_same(found.tree, tree)
        assert found.metadata == {"encoding": "tree"}
        formats.write(path, found.tree, found.metadata)
        assert path.read_bytes() == packed

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_large_arrays_are_cut_as_flax_cuts_them(self, dtype, tmp_path, monkeypatch):
        path = tmp_path / "file.msgpack"
        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
        monkeypatch.setattr(vcjax_msgpack, "MAX_CHUNK_BYTES", 64)
        large = np.arange(3 * 41).reshape(3, 41).astype(np.dtype(dtype))
        for tree in ({"a": {"large": large, "small": np.ones(3)}}, {"list": [large] * 2}, large):
            formats.write(path, tree)
            assert path.read_bytes() == flax_bytes(tree)
            found = formats.read(path, format="msgpack").tree
            assert_same(found, serialization.msgpack_restore(path.read_bytes()))
        tree = {"list": [large]}
        path.write_bytes(serialization.msgpack_serialize(tree))
        found = formats.read(path)
        assert_same(found.tree, tree)
        formats.write(path, found.tree, found.metadata)
        assert path.read_bytes() == serialization.msgpack_serialize(tree)

    @pytest.mark.parametrize(
        ("tree", "words"),
        [
            ({"a": 2**64}, "leaf 'a' cannot be stored"),
            ({"a": "\ud800"}, "leaf 'a' cannot be stored"),
            ({"a": {"__msgpack_chunked_array__": 1}}, "keeps for itself"),
            ({"a": np.array(["text"])}, "'a' has dtype <U4"),
            ({1: 2, "1": 3}, "state dict"),
        ],
    )
    def test_what_flax_could_not_read_back_is_refused(self, tree, words, tmp_path):
        with pytest.raises(errors.FormatError, match=words):
            formats.write(tmp_path / "file.msgpack", tree)

    def test_depth_is_bounded(self, tmp_path):
        path = tmp_path / "file.msgpack"
        for depth, fits in ((100, True), (600, False), (5000, False)):
            tree = leaf = {}
            for _ in range(depth):
                leaf["k"] = leaf = {}
            if fits:
                formats.write(path, tree)
                assert_same(formats.read(path).tree, tree)
            else:
                with pytest.raises(errors.FormatError, match=r"levels deep|recursion"):
                    formats.write(path, tree)

    @pytest.mark.parametrize(
        "packed",
        [
            b"\x82\xa1a\x01\xa1a\x02",  # the same key twice
            msgpack.packb({"a": msgpack.ExtType(9, b"")}),
            msgpack.packb({"a": msgpack.Timestamp(1)}),
            msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"\0" * 8)))}),
            msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((3,), "int8", b"\0")))}),
            msgpack.packb({"__msgpack_chunked_array__": True, "shape": {}}),
            msgpack.packb({"__msgpack_chunked_array__": True, "shape": {}, "chunks": {"0": 1}}),
            b"\x91" * 5000,
            b"\xdf\xff\xff\xff\xff",
        ],
    )
    def test_foreign_msgpack_is_refused(self, packed, tmp_path):
        (tmp_path / "file.msgpack").write_bytes(packed)
        with pytest.raises(errors.FormatError):
            formats.read(tmp_path / "file.msgpack", format="msgpack")


class TestNpz:
    def arrays(self) -> dict:
        return {
            "a/b.c": np.arange(6.0).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
            "scalar": np.float16(1),
            "empty": np.zeros((0, 2)),
            "text": np.array(["ab", "c"]),
            "when": np.array(["2024-01-01"], "datetime64[D]"),
            "record": np.array([(1, 2.0)], [("é世", "i4"), ("y", "f8")]),
            "x.npy": np.ones(1),
            "void": np.zeros(2, "V3"),
        }

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_reads_what_numpy_writes(self, save, tmp_path):
        path = tmp_path / "file.npz"
        with pytest.warns(UserWarning, match="format 3.0"):
            save(path, **self.arrays())
        found = formats.read(path)
        assert found.metadata == {}
        assert_same(found.tree, {name: np.asarray(leaf) for name, leaf in self.arrays().items()})

    def test_numpy_reads_what_we_write(self, tmp_path):
        path = tmp_path / "file.npz"
        plain = self.arrays()
        formats.write(path, plain)
        with np.load(path, allow_pickle=False) as found:
            assert_same(dict(found), {name: np.asarray(leaf) for name, leaf in plain.items()})

    def test_numpy_opens_ml_dtypes_as_it_always_did(self, tmp_path):
        path, leaf = tmp_path / "file.npz", np.arange(3).astype(ml_dtypes.bfloat16)
        formats.write(path, {"a": leaf}, {"step": 1})
        with np.load(path, allow_pickle=False) as found:
            assert found["a"].dtype == np.dtype("V2")
            assert found["a"].tobytes() == leaf.tobytes()
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["__vcjax__.json", "a.npy"]
            content = json.loads(archive.read("__vcjax__.json"))
        assert content == {"version": 1, "dtypes": {"a": "bfloat16"}, "metadata": {"step": 1}}

    def test_big_endian_becomes_native(self, tmp_path):
        np.savez(tmp_path / "file.npz", a=np.arange(3, dtype=">f4"))
        assert_same(formats.read(tmp_path / "file.npz").tree["a"], np.arange(3, dtype=np.float32))

    def test_pickles_are_refused(self, tmp_path):
        np.savez(tmp_path / "file.npz", a=np.array([{}], dtype=object))
        with pytest.raises(errors.FormatError, match="allow_pickle=False"):
            formats.read(tmp_path / "file.npz")

    def archive(self, path, members: list[tuple[str, bytes]]):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)

    def test_other_members_are_refused(self, tmp_path):
        path, array = tmp_path / "file.npz", io.BytesIO()
        np.save(array, np.ones(2, np.int8))
        data = array.getvalue()
        member = '{"version": %s, "dtypes": %s, "metadata": {}}'
        bad = {
            "not an array": [("a.npy", data), ("readme.txt", b"hello")],
            "of data": [("a.npy", data + b"\0")],
            "is not of version": [("__vcjax__.json", (member % (2, "{}")).encode())],
            "malformed": [("__vcjax__.json", (member % (1, "3")).encode())],
            "unknown dtype": [("__vcjax__.json", (member % (1, '{"a": "int3"}')).encode())],
            "should be bfloat16": [
                ("__vcjax__.json", (member % (1, '{"a": "bfloat16"}')).encode()),
                ("a.npy", data),
            ],
        }
        for words, members in bad.items():
            self.archive(path, members)
            with pytest.raises(errors.FormatError, match=words):
                formats.read(path)

    def test_other_zip_archives_are_not_claimed(self, tmp_path):
        self.archive(tmp_path / "model.pt", [("archive/data.pkl", b"")])
        with pytest.raises(errors.FormatError, match="no known"):
            formats.read(tmp_path / "model.pt")

    def test_nul_in_a_name(self, tmp_path):
        with pytest.raises(errors.FormatError, match="cannot be the name"):
            formats.write(tmp_path / "file.npz", {"a\0b": np.ones(1)})
