"""Spectra and suggested updates, against NumPy's decomposition."""

import ml_dtypes
import numpy as np
import pytest

import vcjax
from vcjax.diffing import spectra

from .figures import figures

RNG = np.random.default_rng(0)


def full(old, new):
    return figures(vcjax.diff({"w": old}, {"w": new}, stats="full").changes[0])


@pytest.mark.parametrize("shape", [(300, 200), (70, 900), (5, 8), (2000, 60), (6, 10, 90)])
def test_singular_values_are_those_of_numpy(shape):
    """Of a spectrum that falls as those of training steps do."""
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    size = min(rows, columns)
    u, _ = np.linalg.qr(RNG.standard_normal((rows, size)))
    v, _ = np.linalg.qr(RNG.standard_normal((columns, size)))
    values = 1 / (1 + np.arange(size))
    step = ((u * values) @ v.T).reshape(shape)
    old = np.zeros(shape)
    stats = full(old, step)
    exact = np.linalg.svd(step.reshape(rows, columns), compute_uv=False)
    found = np.array(stats["singular_values"])
    assert found.size == min(size, spectra.RANK)
    np.testing.assert_allclose(found[:8], exact[:8], rtol=1e-3)
    np.testing.assert_allclose(found, exact[: found.size], rtol=0.05)
    assert stats["spectral_norm"] == pytest.approx(exact[0], rel=1e-4)
    assert stats["effective_rank"] == pytest.approx(np.sum(exact**2) / exact[0] ** 2, rel=1e-3)
    energy = np.cumsum(exact**2) / np.sum(exact**2)
    ranks = [r for r in (1, 2, 4, 8, 16, 32) if r <= size]
    np.testing.assert_allclose(stats["energy"], [energy[r - 1] for r in ranks], rtol=1e-3)


def test_equal_leaves_give_equal_figures():
    old = RNG.standard_normal((100, 90)).astype(np.float32)
    new = old + RNG.standard_normal((100, 90)).astype(np.float32)
    assert full(old, new) == full(old, new)


def test_a_slab_of_few_rows_gives_the_same(monkeypatch):
    old = RNG.standard_normal((100, 90)).astype(np.float32)
    new = old + RNG.standard_normal((100, 90)).astype(np.float32)
    whole = full(old, new)["singular_values"]
    monkeypatch.setattr(spectra, "SLAB", 1000)
    np.testing.assert_allclose(full(old, new)["singular_values"], whole, rtol=1e-5)


W = RNG.standard_normal((128, 96)).astype(np.float32)
A, B = (RNG.standard_normal(shape).astype(np.float32) * 0.05 for shape in ((128, 3), (3, 96)))
FEW = W.copy()
FEW[5, :7] += 1

SUGGESTED = {
    "dense": (W, W + 0.1 * RNG.standard_normal(W.shape).astype(np.float32), 128 * 96 * 4, 0),
    "low_rank": (W, W + A @ B, 4 * (128 + 96) * 4, 4),
    "sparse": (W, FEW, 7 * 8, 0),
    "scaled": (W, W * np.float32(0.75), 8, 0),
}


@pytest.mark.parametrize("update", SUGGESTED)
def test_the_update_that_says_it_most_briefly_is_suggested(update):
    old, new, size, rank = SUGGESTED[update]
    stats = full(old, new)
    assert (stats["update"], stats["update_bytes"], stats["update_rank"]) == (update, size, rank)
    assert stats["dense_bytes"] == 128 * 96 * 4
    if update == "scaled":
        assert stats["scale"] == pytest.approx(0.75, rel=1e-6)
    if update != "low_rank":
        quick = figures(vcjax.diff({"w": old}, {"w": new}).changes[0])
        assert quick["update"] == update


def test_a_tiny_training_step_is_not_taken_for_a_scaling():
    new = W + 1e-6 * RNG.standard_normal(W.shape).astype(np.float32)
    assert full(W, new)["update"] == "dense"


def test_the_histogram_counts_what_changed():
    stats = full(W, FEW)
    histogram = stats["histogram"]
    assert sum(histogram["counts"]) == 7
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["counts"][-1] == 7


def test_vectors_and_complex_numbers_have_no_spectrum():
    assert "singular_values" not in full(np.ones(9), np.zeros(9))
    assert "singular_values" not in full(
        np.ones((9, 9), np.complex64), np.zeros((9, 9), np.complex64)
    )
    half = full(W.astype(ml_dtypes.bfloat16), (W + A @ B).astype(ml_dtypes.bfloat16))
    assert half["spectral_norm"] == pytest.approx(np.linalg.norm(A @ B, 2), rel=0.05)
