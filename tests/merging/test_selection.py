import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vcjax import errors
from vcjax.merging.kernels import top_k as selection


def expected(x: np.ndarray, k: int, tie_rule: str) -> np.ndarray:
    magnitude = np.abs(x.astype(np.float64)).ravel()
    order = np.argsort(-magnitude, kind="stable")[:k]
    if tie_rule == ">=" and k:
        return (magnitude >= magnitude[order[-1]]).reshape(x.shape)
    mask = np.zeros(x.size, bool)
    mask[order] = True
    return mask.reshape(x.shape)


MASK = {rule: jax.jit(lambda x, k, r=rule: selection.top_mask(x, k, r)) for rule in ("exact", ">=")}
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0**-140, -3e38, float("inf"), 7.25, -7.25])


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=24, max_size=24), st.integers(0, 24), st.sampled_from(list(MASK)))
def test_masks_with_ties_zeros_and_infinities(values: list[float], k: int, rule: str) -> None:
    x = np.array(values, np.float32).reshape(4, 6)
    np.testing.assert_array_equal(MASK[rule](x, k), expected(x, k, rule))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("k", [0, 1, 777, 5000, 20000, 40007])
@pytest.mark.parametrize("rule", ["exact", ">="])
def test_masks_of_every_width(dtype: jnp.dtype, k: int, rule: str) -> None:
    """Of more than two tiles, the last of them in part."""
    x = jnp.asarray(np.random.default_rng(k).normal(size=40007), dtype)
    assert x.size > 2 * selection.TILE
    mask = np.asarray(MASK[rule](x, k))
    np.testing.assert_array_equal(mask, expected(np.asarray(x, np.float32), k, rule))
    if rule == "exact":
        assert mask.sum() == k


@pytest.mark.parametrize("shape", [(150_000,), (3, 70_000), (5, 4, 7), (70_000, 2), (1,), ()])
def test_ties_break_by_flat_index_in_every_shape(shape: tuple[int, ...]) -> None:
    """Also where rows, or their number, are too long to be searched at once."""
    x = np.random.default_rng(0).integers(-2, 3, shape).astype(np.float32)
    for k in {0, 1, x.size // 3, x.size * 9 // 10, x.size}:
        np.testing.assert_array_equal(MASK["exact"](x, k), expected(x, k, "exact"))


@pytest.mark.parametrize("size", [1, 2, 255, 4097, 1 << 16, (1 << 16) + 1, 300_001])
def test_locate(size: int) -> None:
    counts = np.random.default_rng(size).integers(0, 3, size).astype(np.int32)
    until = np.cumsum(counts)
    locate = jax.jit(selection.locate)
    for need in (1, 2, until[-1] // 2, until[-1], until[-1] + 1):
        i = min(np.searchsorted(until, need), size - 1)
        assert locate(jnp.asarray(counts), jnp.int32(need)) == (i, until[i] - counts[i])


@pytest.mark.parametrize("search", [selection.by_histogram, selection.by_counting])
@pytest.mark.parametrize("dtype", [jnp.uint16, jnp.uint32])
def test_both_searches_find_the_kth_key(search: object, dtype: jnp.dtype) -> None:
    """The accelerators' search runs on CPU as well, with the same answers."""
    assert callable(search)
    keys = np.random.default_rng(0).integers(0, jnp.iinfo(dtype).max, 3000).astype(dtype)
    keys[::3] = keys[7]
    jitted = jax.jit(search)
    for k in (1, 2, 1500, 2999, 3000):
        key, above, equal = jitted(jnp.asarray(keys), jnp.int32(k))
        kth = np.sort(keys)[::-1][k - 1]
        assert (key, above, equal) == (kth, (keys > kth).sum(), (keys == kth).sum())


def test_nan_is_the_largest_magnitude() -> None:
    x = jnp.array([jnp.inf, 1.0, -jnp.nan, jnp.nan])
    assert selection.top_mask(x, 2).tolist() == [False, False, True, True]


@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("a", "b")])
def test_sharded_leaves(spec: P) -> None:
    """Ties included: the lowest flat index of the whole leaf, not of a shard."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    shape = (4, 2) if "b" in spec else (8, 1)
    mesh = jax.make_mesh(shape, ("a", "b"), (AxisType.Auto,) * 2)
    x = np.random.default_rng(0).integers(-5, 6, size=(64, 32)).astype(np.float32)
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    for rule, mask in MASK.items():
        np.testing.assert_array_equal(mask(placed, 500), expected(x, 500, rule))


def test_order_statistic() -> None:
    x = np.random.default_rng(0).normal(size=501).astype(np.float32)
    for rank in (0, 1, 250, 500):
        assert selection.order_statistic(jnp.asarray(x), rank) == np.sort(x)[rank]


def test_count_is_exact_for_numbers_and_close_for_arrays() -> None:
    assert selection.count(0.07, 100) == 7  # .07 * 100 is 7.000000000000001
    assert selection.count(0.1, 30, "floor") == 3
    assert selection.count(0.2, 11) == 3
    assert selection.count(0.2, 11, "floor") == 2
    for density in (0.0, 0.1, 0.25, 0.3, 0.7, 1.0):
        for size in (1, 10, 30, 1000):
            exact = selection.count(density, size)
            assert selection.count(jnp.float32(density), size) == exact
    with pytest.raises(errors.MergeError, match="2147483648 elements"):
        selection.count(0.5, 2**31)
