"""PCB-Merging and AdaMerging against NumPy float64, written from the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import errors, merging

Array = np.ndarray
SHAPES = {"a": (40, 30), "b": (40, 30)}  # alike, so that each program compiles once


def tree(seed: int, around: dict[str, Array] | None = None) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    drawn = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    moved = {name: x + (0 if around is None else around[name]) for name, x in drawn.items()}
    return {name: x.astype(np.float32) for name, x in moved.items()}


BASE = tree(9)
MODELS = [tree(seed, BASE) for seed in range(3)]


def flat(model: dict[str, Array]) -> Array:
    return np.concatenate([model[name].astype(float).ravel() for name in SHAPES])


def limits(x: Array, below: float, above: float) -> tuple[Array, Array]:
    """Of every row, the elements of these shares of the sorted row."""
    rows, n = np.sort(x, axis=1), x.shape[1]
    return rows[:, [int(n * below)]], rows[:, [int(n * (1 - above) - 1)]]


def pcb(weights: list[float], density: float, scale: float, clip: float) -> Array:
    """Sorting whole models, as the official code does."""
    taus = np.stack([flat(model) - flat(BASE) for model in MODELS])
    low, high = limits(np.abs(taus), clip, clip)
    magnitude = np.clip(np.abs(taus), low, high)
    own = ((magnitude - low) / (high - low)) ** 2
    score = np.exp(len(taus) * own) * np.tanh(taus * taus.sum(axis=0))
    worst, best = limits(score, 1 - density, 0)
    balance = (np.clip(score, worst, best) - worst) / (best - worst)
    balance = balance * np.array(weights)[:, None]
    top, bottom = (balance * np.sign(taus) * magnitude).sum(axis=0), balance.sum(axis=0)
    return flat(BASE) + scale * top / np.where(bottom == 0, 1, bottom)


def test_pcb() -> None:
    out = merging.merge(MODELS, merging.pcb(scale=1.2), BASE)
    expected = pcb([1, 1, 1], 0.05, 1.2, 1e-4)
    moved = (np.abs(expected - flat(BASE)) > 1e-7).mean()
    assert 0.05 < moved < 0.15
    np.testing.assert_allclose(flat(jax.device_get(out)), expected, rtol=2e-5, atol=2e-5)


def test_pcb_with_weights_and_densities_that_are_traced() -> None:
    """Also of numbers that all equal each other, or are zero: limits coincide."""
    method, weights = merging.pcb(clip=0.05, scale=0.7), [1.0, 2.0, 0.5]
    grid = {"density": [0.05, 0.5]}
    swept = merging.sweep(method, grid, lambda tree: tree, MODELS, BASE, weights).values
    for i, density in enumerate(grid["density"]):
        out = flat({name: x[i] for name, x in swept.items()})
        np.testing.assert_allclose(out, pcb(weights, density, 0.7, 0.05), rtol=2e-5, atol=2e-5)
    zero = {name: np.zeros_like(x) for name, x in BASE.items()}
    for step in (0, 1):
        level = {name: x + np.float32(step) for name, x in zero.items()}
        out = merging.merge([level] * 3, merging.pcb(), zero)
        np.testing.assert_allclose(flat(jax.device_get(out)), flat(level), rtol=1e-6)


def adamerging(coefficients: dict[str, Array], density: float | None) -> dict[str, Array]:
    out = {}
    for name in SHAPES:
        base = BASE[name].astype(float)
        taus = [model[name].astype(float) - base for model in MODELS]
        if density is not None:
            k = int(np.ceil(density * base.size))
            cut = [np.sort(np.abs(tau).ravel())[-k] for tau in taus]
            taus = [np.where(np.abs(t) >= c, t, 0) for t, c in zip(taus, cut, strict=True)]
            sign = np.where(sum(taus) >= 0, 1, -1)
            taus = [np.where(np.sign(t) == sign, t, 0) for t in taus]
        out[name] = base + sum(c * t for c, t in zip(coefficients[name], taus, strict=True))
    return out


BY_LEAF = {"a": [0.3, -0.2, 1.0], "b": [0.0, 0.5, 0.25]}


@pytest.mark.parametrize("density", [None, 0.2])
def test_adamerging_by_leaf(density: float | None) -> None:
    out = merging.merge(MODELS, merging.adamerging(BY_LEAF, density), BASE)
    expected = adamerging({name: np.array(x) for name, x in BY_LEAF.items()}, density)
    for name in SHAPES:
        np.testing.assert_allclose(out[name], expected[name], rtol=1e-6, atol=1e-6)


def test_adamerging_for_all_leaves_alike() -> None:
    ours = merging.merge(MODELS, merging.adamerging([0.5, 0.1, 0.2]), BASE)
    theirs = merging.merge(MODELS, merging.task_arithmetic(), BASE, weights=[0.5, 0.1, 0.2])
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6)
    with pytest.raises(errors.MergeError, match=r"shape \[2\] for 3 models"):
        merging.merge(MODELS, merging.adamerging([0.5, 0.1]), BASE)
    # a leaf without coefficients stays
    part = merging.merge(MODELS, merging.adamerging({"b": 1.0}), BASE)
    np.testing.assert_array_equal(part["a"], BASE["a"])


def test_entropy() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 5)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -(p * np.log(p)).sum(axis=1).mean()
    np.testing.assert_allclose(merging.entropy(jnp.asarray(logits)), expected, rtol=1e-5)
