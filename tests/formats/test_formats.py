"""Every installed checkpoint format keeps the same promises."""

import os
import resource
import stat
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcjax import errors, formats
from vcjax.formats import arrays

NUMPY_DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
ALL_DTYPES = (*NUMPY_DTYPES, *sorted(arrays.ML_DTYPES))
SAFETENSORS_DTYPES = (
    *(name for name in NUMPY_DTYPES if name != "complex128"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float4_e2m1fn"),
)
unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@dataclass(frozen=True)
class Case:
    """What a format promises beyond what all do."""

    name: str
    dtypes: tuple[str, ...]
    metadata: dict
    bad_metadata: dict
    names: st.SearchStrategy


CASES = {
    case.name: case
    for case in (
        Case(
            "safetensors",
            SAFETENSORS_DTYPES,
            {"format": "flax", 'né\n"\x7f\x01': "\u2028", "a": ""},
            {"step": 3},
            unicode,
        ),
        Case("msgpack", ALL_DTYPES, {}, {"step": "3"}, unicode),
        Case(
            "npz",
            ALL_DTYPES,
            {"step": 3, "config": {"layers": [1, 2.5, None, True]}, "é": "\u2028"},
            {"when": float("nan")},
            unicode.filter(lambda name: "\0" not in name),
        ),
    )
}
each_format = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def bits(dtype: np.dtype) -> int:
    """Number of bits of an element that carry information."""
    if dtype.name in arrays.ML_DTYPES and dtype.itemsize == 1:
        kind = ml_dtypes.finfo if "float" in dtype.name else ml_dtypes.iinfo
        return kind(dtype).bits
    return 8 * dtype.itemsize


def random_array(dtype_name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of random bit patterns, NaN payloads and all."""
    dtype = np.dtype(dtype_name)
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    if dtype.name == "bool":
        raw &= 1
    elif bits(dtype) < 8:
        if "float" in dtype.name:
            raw &= (1 << bits(dtype)) - 1
        else:
            span = ml_dtypes.iinfo(dtype)
            values = np.random.default_rng(seed).integers(int(span.min), int(span.max) + 1, shape)
            return np.asarray(values).astype(dtype)
    return raw.reshape(-1).view(dtype).reshape(shape)


def storable(case: Case, dtype: str, shape: tuple[int, ...]) -> bool:
    packed = case.name == "safetensors" and dtype == "float4_e2m1fn"
    return not packed or (len(shape) > 0 and shape[-1] % 2 == 0)


@st.composite
def trees(draw, case: Case):
    tree = {}
    for name in draw(st.lists(case.names, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(case.dtypes))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        if storable(case, dtype, shape) and name not in (
            "__metadata__",
            "__msgpack_chunked_array__",
        ):
            tree[name] = random_array(dtype, shape, draw(st.integers(0, 2**32)))
    return tree


def assert_same(left, right, path: str = ""):
    """Equal structure, types, dtypes, shapes and bytes."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert set(left) == set(right), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), path
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}/{index}")
    elif isinstance(left, np.ndarray | np.generic):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert left.tobytes() == right.tobytes(), path
    else:
        assert repr(left) == repr(right), path


def sample() -> dict:
    return {
        "w": np.arange(300, dtype=np.float32).reshape(3, 100),
        "b": np.ones(5, ml_dtypes.bfloat16),
    }


def test_there_is_a_case_for_every_format():
    assert {form for form in formats.formats() if form in CASES} == set(CASES)
    assert list(formats.formats())[: len(CASES)] == sorted(CASES)


@each_format
def test_round_trip_is_exact_and_deterministic(case, tmp_path):
    form = formats.format_named(case.name)
    first, second = tmp_path / "first", tmp_path / "second"

    @fast
    @given(trees(case))
    def check(tree):
        form.write(first, tree, case.metadata)
        found = form.read(first)
        assert_same(found.tree, tree)
        assert found.metadata == case.metadata
        turned = dict(reversed(found.tree.items()))
        form.write(second, turned, dict(reversed(found.metadata.items())))
        assert first.read_bytes() == second.read_bytes()
        assert form.sniff(first.read_bytes()[:64])
        assert formats.format_of(first) is form

    check()
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


@each_format
def test_every_dtype_is_exact_or_refused_by_name(case, tmp_path):
    form, path = formats.format_named(case.name), tmp_path / "file"
    for dtype in ALL_DTYPES:
        for shape in ((), (0,), (3, 0, 2), (2, 6)):
            tree = {"leaf": random_array(dtype, shape, 0)}
            if dtype in case.dtypes and storable(case, dtype, shape):
                form.write(path, tree, {})
                assert_same(form.read(path).tree, tree)
            else:
                with pytest.raises(errors.FormatError, match="leaf 'leaf'") as caught:
                    form.write(path, tree, {})
                assert caught.value.hint


@each_format
def test_every_kind_of_array_is_normalised(case, tmp_path):
    path = tmp_path / f"file.{case.name}"
    tree = {
        "jax": jnp.arange(6.0).reshape(2, 3),
        "bfloat16": jnp.ones(3, jnp.bfloat16),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(20)[::3],
        "big": np.arange(4, dtype=">f4"),
        "variable": nnx.Param(jnp.ones((2, 2))),
    }
    formats.write(path, tree)
    found = formats.read(path).tree
    for name, leaf in tree.items():
        want = np.asarray(leaf)
        assert found[name].dtype == want.dtype.newbyteorder("="), name
        assert found[name].dtype.isnative
        np.testing.assert_array_equal(found[name], want)


@each_format
@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (jax.random.key(0), "key<fry>"),
        (np.array([object()]), "Python objects"),
        (np.ma.masked_array([1, 2], [True, False]), "mask"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "ShapeDtypeStruct"),
        (object(), "type object"),
    ],
    ids=["key", "objects", "masked", "abstract", "object"],
)
def test_leaves_that_no_format_holds_are_named(case, leaf, words, tmp_path):
    with pytest.raises(errors.FormatError, match=words) as caught:
        formats.write(tmp_path / f"file.{case.name}", {"outer": {"a/b": leaf}})
    assert caught.value.path == "outer/a%2Fb"
    assert caught.value.hint
    assert not os.listdir(tmp_path)


@each_format
def test_a_donated_array_is_named(case, tmp_path):
    leaf = jnp.ones(3)
    leaf.delete()
    with pytest.raises(errors.FormatError, match="'gone' cannot be read"):
        formats.write(tmp_path / f"file.{case.name}", {"gone": leaf})


@each_format
def test_metadata_that_do_not_fit_are_refused(case, tmp_path):
    with pytest.raises(errors.FormatError, match="metadata") as caught:
        formats.write(tmp_path / f"file.{case.name}", sample(), case.bad_metadata)
    assert caught.value.hint


@each_format
@pytest.mark.parametrize("kind", ["truncate", "flip", "garbage"])
def test_damage_is_a_format_error(case, kind, tmp_path):
    form, path = formats.format_named(case.name), tmp_path / "file"
    form.write(path, sample(), case.metadata)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    if kind == "truncate":
        for length in {*range(0, 300), *random.integers(0, len(whole), 100), len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(errors.FormatError):
                form.read(path)
        return
    for _ in range(1500):
        if kind == "flip":
            damaged = bytearray(whole)
            edge = 400  # headers and directories lie there; flips in the data are dull
            position = int(random.integers(0, edge)) - int(random.integers(0, 2)) * edge
            damaged[position] ^= 1 << int(random.integers(0, 8))
        else:
            damaged = whole[: int(random.integers(0, 40))] + random.bytes(60)
        path.write_bytes(damaged)
        try:
            form.read(path)
        except errors.FormatError as error:
            assert str(path) in str(error) or error.path is not None  # noqa: PT017


@each_format
def test_content_counts_more_than_the_suffix(case, tmp_path):
    for suffix in ("", ".bin", ".npz", ".msgpack", ".safetensors"):
        path = tmp_path / f"file{suffix}"
        formats.write(path, sample(), case.metadata, format=case.name)
        assert formats.format_of(path).name == case.name
        assert_same(formats.read(path).tree, sample())
    assert formats.format_of(tmp_path / "file.npz", for_writing=True).name == "npz"
    assert formats.format_of(tmp_path / f"NEW.{case.name.upper()}").name == case.name


@each_format
def test_a_failed_write_leaves_the_old_file(case, tmp_path):
    path = tmp_path / f"file.{case.name}"
    formats.write(path, sample())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(errors.StorageError, match="File too large") as caught:
            formats.write(path, {"large": np.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.hint
    with pytest.raises(errors.FormatError):
        formats.write(path, {"good": np.ones(3), "odd": object()})
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


@each_format
def test_permissions_and_links_are_kept(case, tmp_path):
    real, link = tmp_path / "real", tmp_path / f"link.{case.name}"
    formats.write(real, sample(), format=case.name)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~umask
    real.chmod(0o640)
    link.symlink_to(real)
    formats.write(link, {"a": np.ones(1)})
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert_same(formats.read(link).tree, {"a": np.ones(1)})


@each_format
def test_a_file_can_be_replaced_while_its_arrays_are_used(case, tmp_path):
    path = tmp_path / f"file.{case.name}"
    formats.write(path, sample())
    found = formats.read(path)
    formats.write(path, {name: array + array for name, array in found.tree.items()})
    assert_same(found.tree, sample())


@each_format
def test_what_the_disk_refuses_is_a_storage_error(case, tmp_path):
    form = formats.format_named(case.name)
    with pytest.raises(errors.StorageError, match="No such file"):
        form.read(tmp_path / "missing")
    with pytest.raises(errors.StorageError, match="Is a directory"):
        form.read(tmp_path)
    with pytest.raises(errors.StorageError, match="No such file"):
        form.write(tmp_path / "missing" / "file", sample(), {})
    with pytest.raises(errors.StorageError, match="Is a directory"):
        form.write(tmp_path, sample(), {})


@pytest.mark.parametrize("name", ["safetensors", "npz"])
def test_nested_trees_become_names(name, tmp_path):
    separator = {"safetensors": ".", "npz": "/"}[name]
    path = tmp_path / f"file.{name}"
    state = train_state.TrainState.create(
        apply_fn=print, params={"dense": {"kernel": jnp.ones((2, 2))}}, tx=optax.adam(1e-3)
    )
    state = state.replace(step=jnp.int32(4))
    formats.write(path, {"state": state, "list": [np.ones(1), (np.ones(2),)], "empty": {}})
    names = set(formats.read(path).tree)
    assert {name.replace(separator, "/") for name in names} == {
        *("state/step", "state/params/dense/kernel", "list/0", "list/1/0"),
        *(f"state/opt_state/0/{leaf}" for leaf in ("count", "mu/dense/kernel", "nu/dense/kernel")),
    }


@pytest.mark.parametrize("name", ["safetensors", "npz"])
def test_python_values_need_another_format(name, tmp_path):
    for value in (1, 2.5, None, "text"):
        with pytest.raises(errors.FormatError, match="leaf 'a/b' is") as caught:
            formats.write(tmp_path / f"file.{name}", {"a": {"b": value}})
        assert ".msgpack" in (caught.value.hint or "")
    with pytest.raises(errors.FormatError, match="single leaf"):
        formats.write(tmp_path / f"file.{name}", np.ones(3))


def test_names_that_collide_are_refused(tmp_path):
    one = np.ones(1)
    with pytest.raises(errors.FormatError, match=r"'a\.b' and 'a/b' would both be named 'a\.b'"):
        formats.write(tmp_path / "file.safetensors", {"a.b": one, "a": {"b": one}})
    for name in ("safetensors", "npz"):
        with pytest.raises(errors.FormatError, match="would both be named '1'"):
            formats.write(tmp_path / f"file.{name}", {1: one, "1": one})
    with pytest.raises(errors.FormatError, match="would both be named 'a/b'"):
        formats.write(tmp_path / "file.npz", {"a/b": one, "a": {"b": one}})
    formats.write(tmp_path / "file.npz", {"a": {"b/c": one, "b": {"c": one}}})
    assert set(formats.read(tmp_path / "file.npz").tree) == {"a/b%2Fc", "a/b/c"}
