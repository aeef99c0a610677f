"""The counter-based generator: does what it draws look random, and is it always the same?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import merging
from vcjax.merging.kernels import random_bits as counter

SHAPE = (512, 512)


def bits(
    path: str = "a", model: int = 0, seed: int = 0, shape: tuple[int, ...] = SHAPE
) -> np.ndarray:
    words = counter.leaf_seed(jax.random.key(seed), jnp.asarray(counter.path_words(path)))
    return np.asarray(counter.random_bits(words, model, shape))


@pytest.mark.parametrize("shape", [(262144,), (512, 512), (64, 64, 64), (262144, 1), (1, 262144)])
def test_uniform(shape: tuple[int, ...]) -> None:
    """Chi-squared over 1024 cells, and each bit is set half of the time."""
    drawn = bits(shape=shape)
    counts = np.bincount((drawn >> 22).ravel(), minlength=1024)
    expected = drawn.size / 1024
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 1023) < 5 * np.sqrt(2 * 1023)
    for bit in range(32):
        share = ((drawn >> bit) & 1).mean()
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(drawn.size)


def independent(a: np.ndarray, b: np.ndarray) -> None:
    """No bit of one says anything of the same or the next bit of the other."""
    limit = 5.5 / np.sqrt(a.size)  # the largest of some hundred normal deviates
    for i in range(0, 32, 3):
        for j in (i, (i + 1) % 32):
            x = ((a >> i) & 1).ravel() - 0.5
            y = ((b >> j) & 1).ravel() - 0.5
            assert abs((x * y).mean() * 4) < limit


def test_independent_of_neighbours() -> None:
    drawn = bits()
    for step in (1, 2, 3, 64):
        independent(drawn[:, step:], drawn[:, :-step])
        independent(drawn[step:], drawn[:-step])


def test_independent_across_models_paths_and_seeds() -> None:
    for other in (bits(model=1), bits(model=31), bits("b"), bits("a/b"), bits(seed=1)):
        independent(bits(), other)
    # and not the same numbers in another order, as one round of hashing would give
    assert len(np.intersect1d(bits(), bits(model=1))) < 60


def test_bernoulli() -> None:
    drawn = jnp.asarray(bits())
    for p in (0.0, 0.001, 0.1, 0.5, 0.9):
        share = float(counter.bernoulli(drawn, p).mean())
        assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / drawn.size)
    assert bool(counter.bernoulli(jnp.uint32(0xFFFFFFFF), 1.0))
    assert not bool(counter.bernoulli(jnp.uint32(0), 0.0))


def test_slices_draw_what_the_whole_draws() -> None:
    words = jnp.asarray([1, 2], jnp.uint32)
    whole = counter.random_bits(words, 3, (10, 7))
    part = counter.random_bits(words, 3, (4, 7), row=5)
    np.testing.assert_array_equal(whole[5:9], part)
    np.testing.assert_array_equal(
        counter.flat_index((10, 7))[5:9], counter.flat_index((4, 7), row=5)
    )


def test_dare_is_unbiased_and_the_same_every_time() -> None:
    model, base = {"w": jnp.ones(SHAPE)}, {"w": jnp.zeros(SHAPE)}
    method = merging.dare_linear(density=0.25)
    first = merging.merge([model], method, base, key=1)["w"]
    assert set(np.unique(first)) == {0.0, 4.0}
    assert abs(float(first.mean()) - 1) < 5 * np.sqrt(3 / first.size)
    np.testing.assert_array_equal(first, merging.merge([model], method, base, key=1)["w"])
    assert (first != merging.merge([model], method, base, key=2)["w"]).mean() > 0.3


def test_dare_as_mergekit_keeps_the_norm() -> None:
    random = np.random.default_rng(0)
    model = {"w": jnp.asarray(random.normal(size=SHAPE), jnp.float32)}
    base = jax.tree.map(jnp.zeros_like, model)
    for rescale, norm in (("l1", 1), ("l2", 2), ("linf", np.inf)):
        method = merging.dare_linear(0.25, rescale=rescale)
        out = merging.merge([model], method, base, key=1)["w"]
        ours, theirs = (np.linalg.norm(np.ravel(x), norm) for x in (out, model["w"]))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_della_keeps_large_magnitudes_more_often() -> None:
    row = jnp.arange(1.0, 513)
    model, base = {"w": jnp.broadcast_to(row, SHAPE)}, {"w": jnp.zeros(SHAPE)}
    method = merging.della_linear(0.5, 0.3, rescale=None)
    kept = np.asarray(merging.merge([model], method, base, key=0)["w"] != 0).mean(axis=0)
    expected = 0.2 + 0.6 * np.arange(512) / 511
    deviations = (kept - expected) / np.sqrt(expected * (1 - expected) / 512)
    assert abs(deviations.mean()) < 5 / np.sqrt(512)
    assert 0.75 < deviations.std() < 1.25
    unbiased = merging.merge([model], merging.della_linear(0.5, 0.3), base, key=0)["w"]
    np.testing.assert_allclose(unbiased.mean(), row.mean(), rtol=0.02)
