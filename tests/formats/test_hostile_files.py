"""Checkpoint files, recipes and indices that somebody else made: read, or an error of ours."""

import io
import json
import zipfile
import zlib

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcjax import formats, mergekit, tree
from vcjax.errors import FormatError, VcjaxError
from vcjax.formats import sharded

TREE = {
    "kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scalar": np.float16(2),
    "flags": np.array([True, False]),
}
SUFFIXES = ["msgpack", "npz", "safetensors"]
QUICK = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{suffix: bytes of a sound file}."""
    folder = tmp_path_factory.mktemp("sound")
    for suffix in SUFFIXES:
        formats.write(folder / f"x.{suffix}", TREE, format=suffix)
    return {suffix: (folder / f"x.{suffix}").read_bytes() for suffix in SUFFIXES}


def refused_or_read(path, form):
    """What it holds can be committed, or it is refused by an error of ours."""
    try:
        tree.flatten(formats.read(path, form).tree)
    except VcjaxError:
        return


@pytest.mark.parametrize("suffix", SUFFIXES)
@QUICK
@given(draw=st.data())
def test_files_with_other_bytes(written, tmp_path, suffix, draw):
    data = written[suffix]
    at = draw.draw(st.integers(0, len(data)))
    stop = draw.draw(st.integers(at, min(at + 8, len(data))) | st.just(len(data)))
    other = draw.draw(st.binary(max_size=12) | st.sampled_from([b"\xff" * 8, b"[" * 100_000]))
    path = tmp_path / "x"
    path.write_bytes(data[:at] + other + data[stop:])
    refused_or_read(path, suffix)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)  # fmt: skip


@QUICK
@given(code=st.integers(0, 4), content=anything, shape=anything, dtype=anything, data=anything)
def test_msgpack_of_any_values(tmp_path, code, content, shape, dtype, data):
    array = msgpack.ExtType(code, msgpack.packb([shape, dtype, data]))
    chunked = {"__msgpack_chunked_array__": content, "shape": shape, "chunks": {"0": array}}
    for number, value in enumerate([content, {"w": array}, {"w": chunked}, {"w": [chunked]}]):
        path = tmp_path / f"{number}.msgpack"
        path.write_bytes(msgpack.packb(value))
        refused_or_read(path, "msgpack")


@QUICK
@given(shape=anything, code=anything | st.just("F32"), offsets=anything | st.just([0, 8]))
def test_safetensors_of_any_header(tmp_path, shape, code, offsets):
    tensor = {"dtype": code, "shape": shape, "data_offsets": offsets}
    header = json.dumps({"w": tensor, "__metadata__": {"a": "b"}}, default=str).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refused_or_read(path, "safetensors")


@QUICK
@given(head=st.text("{}()[]'\":,descrfotan_shape0123456789<f4VOTrue\n ", max_size=60))
def test_npz_of_any_npy_header(tmp_path, head):
    for version in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        length = len(head).to_bytes(2 if version[0] == 1 else 4, "little")
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w.npy", b"\x93NUMPY" + version + length + head.encode() + bytes(16))
        refused_or_read(path, "npz")


@pytest.mark.parametrize("dtype", [5, None, ["float32"], b"\xff", {}, "object", "str32"])
def test_a_dtype_that_is_none_is_damage(tmp_path, dtype):
    array = msgpack.ExtType(1, msgpack.packb([[1], dtype, bytes(4)]))
    (tmp_path / "x.msgpack").write_bytes(msgpack.packb({"w": array}))
    with pytest.raises(FormatError, match="is damaged or not a Flax msgpack file"):
        formats.read(tmp_path / "x.msgpack")


def test_members_that_lie_over_each_other_claim_too_much(tmp_path):
    """The zip bomb of D. Fifield: each member claims what all of the file could hold."""
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros(2**20, np.uint8))
    packed = zlib.compress(content.getvalue(), 9)[2:-4]
    sizes = (len(packed), len(content.getvalue()), zlib.crc32(content.getvalue()))
    (tmp_path / "bomb.npz").write_bytes(overlapping(packed, *sizes, count=4000))
    with pytest.raises(FormatError, match="claim"):
        formats.read(tmp_path / "bomb.npz")


def overlapping(packed, compressed, size, crc, count):
    """A zip archive of which all members are one piece of data."""
    numbers = b"".join(number.to_bytes(4, "little") for number in (crc, compressed, size))
    common = b"\x14\0\0\0\x08\0\0\0\0\0" + numbers + b"\x09\0\0\0"
    local = b"PK\x03\x04" + common + b"00000.npy" + packed
    entries = b"".join(
        b"PK\x01\x02\x14\0" + common + bytes(14) + f"{number:05}.npy".encode()
        for number in range(count)
    )
    ends = (len(entries), len(local))
    tail = b"".join(number.to_bytes(4, "little") for number in ends)
    counts = count.to_bytes(2, "little") * 2
    return local + entries + b"PK\x05\x06\0\0\0\0" + counts + tail + b"\0\0"


@pytest.mark.parametrize(
    "weights", [[], 5, None, {"a": []}, {"a": {}}, {"a": "../x"}, {"a": "/x"}, {"a": "a\0b"}]
)
def test_an_index_names_files_of_its_folder(tmp_path, weights):
    (tmp_path / sharded.INDEX).write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(FormatError, match="is damaged or not a safetensors index"):
        sharded.read_folder(tmp_path)


def test_an_index_nested_too_deep(tmp_path):
    (tmp_path / sharded.INDEX).write_text("[" * 200_000)
    with pytest.raises(FormatError, match="is damaged or not a safetensors index"):
        sharded.read_folder(tmp_path)


LAUGHS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))
RECIPES = {
    "deep": "[" * 10_000,
    "part of itself": "merge_method: x\nmodels: [{model: a, parameters: {w: &x [{value: *x}]}}]",
    "laughs": f"a0: &a0 lol\n{LAUGHS}\nmodels: *a29\nmerge_method: linear",
    "no bool": "merge_method: !!bool maybe",
    "month 13": "merge_method: 2026-13-40",
    "number": "merge_method: " + "9" * 5000,
    "keys": "merge_method: linear\n5: 6\nx: y\n? [1, 2]\n: 3",
    "code": "merge_method: !!python/object/apply:os.system [exit]",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_refused(tmp_path, name):
    (tmp_path / "recipe.yml").write_text(RECIPES[name])
    with pytest.raises(FormatError, match="recipe"):
        mergekit.read_recipe(tmp_path / "recipe.yml")


@QUICK
@given(
    fields=st.fixed_dictionaries(
        {"merge_method": anything | st.just("linear")},
        optional=dict.fromkeys(
            ["models", "slices", "base_model", "parameters", "dtype", "tokenizer", "x"], anything
        ),
    )
)
def test_recipes_of_any_values(tmp_path, fields):
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps(fields, default=repr))
    try:
        assert mergekit.read_recipe(path).slices
    except VcjaxError:
        return
