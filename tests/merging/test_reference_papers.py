"""Paper methods and statistics-weighted ones against NumPy float64, written from the formulas."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import errors, merging

Array = np.ndarray
SHAPE = (12, 9)
N = 3


def rounded(x: Array) -> Array:
    """float64 of float32 values, so that both sides start from the same numbers."""
    return x.astype(np.float32).astype(float)


@pytest.fixture
def base() -> Array:
    return rounded(np.random.default_rng(9).normal(size=SHAPE))


@pytest.fixture
def xs(base: Array) -> list[Array]:
    random = np.random.default_rng(1)
    return [rounded(base + random.normal(size=SHAPE)) for _ in range(N)]


@pytest.fixture
def taus(xs: list[Array], base: Array) -> list[Array]:
    return [x - base for x in xs]


def run(method: merging.MergeMethod, xs: list[Array], base: Any = None, **more: Any) -> Array:
    grounds = None if base is None else {"w": jnp.asarray(base, jnp.float32)}
    trees = [{"w": jnp.asarray(x, jnp.float32)} for x in xs]
    return np.asarray(merging.merge(trees, method, grounds, **more)["w"], float)


def agree(ours: Array, theirs: Array, tolerance: float = 3e-5) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def orthogonal(x: Array) -> Array:
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


def test_fisher(xs: list[Array]) -> None:
    random = np.random.default_rng(3)
    # far apart in size, and nowhere informed in one corner
    fishers = [rounded(random.random(SHAPE) ** 8 * 1e-9) for _ in range(N)]
    for f in fishers:
        f[:3] = 0
    weights = [1.0, 2.0, 0.5]
    top = sum(w * f * x for w, f, x in zip(weights, fishers, xs, strict=True))
    bottom = sum(w * f for w, f in zip(weights, fishers, strict=True))
    mean = sum(w * x for w, x in zip(weights, xs, strict=True)) / sum(weights)
    expected = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), mean)
    numbers = [{"w": jnp.asarray(f, jnp.float32)} for f in fishers]
    agree(run(merging.fisher(), xs, statistics=numbers, weights=weights), expected)
    floored = [np.maximum(f, 1e-6) for f in fishers]
    informed = np.sum([f * x for f, x in zip(floored, xs, strict=True)], axis=0)
    expected = informed / np.sum(floored, axis=0)
    agree(run(merging.fisher(floor=1e-6), xs, statistics=numbers), expected)


def gram_matrices(rank: int) -> list[Array]:
    random = np.random.default_rng(4)
    inputs = [random.normal(size=(rank, SHAPE[0])) + 0.5 for _ in range(N)]
    return [rounded(x.T @ x) for x in inputs]


@pytest.mark.parametrize("shrink", [1.0, 0.9, 0.1])
def test_regmean(xs: list[Array], shrink: float) -> None:
    grams = gram_matrices(60)
    shrunk = [shrink * g + (1 - shrink) * np.diag(np.diag(g)) for g in grams]
    right = sum(g @ x for g, x in zip(shrunk, xs, strict=True))
    expected = np.linalg.solve(sum(shrunk), right)
    numbers = [{"w": jnp.asarray(g, jnp.float32)} for g in grams]
    agree(run(merging.regmean(shrink), xs, statistics=numbers), expected, 2e-4)
    iterated = run(merging.mats(60, shrink, 1e-9), xs, statistics=numbers)
    agree(iterated, expected, 2e-4)


def test_regmean_minimises_the_disagreement(xs: list[Array]) -> None:
    """With fewer inputs than dimensions too: then the nearest such layer to the mean.

    Distances are measured in the scale of the inputs (the diagonal of the Gram matrix).
    """
    grams = gram_matrices(2)
    numbers = [{"w": jnp.asarray(g, jnp.float32)} for g in grams]
    ours = run(merging.regmean(1.0), xs, statistics=numbers)
    residual = sum(g @ (ours - x) for g, x in zip(grams, xs, strict=True))
    assert np.abs(residual).max() < 1e-3 * max(np.abs(g).max() for g in grams)
    values, vectors = np.linalg.eigh(sum(grams))
    free = vectors[:, values < 1e-4]
    assert free.shape[1] == 6
    moved = np.diag(sum(grams))[:, None] * (ours - np.mean(xs, axis=0))
    assert np.abs(moved).max() > 1
    assert np.abs(free.T @ moved).max() < 1e-2 * np.abs(moved).max()


def test_regmean_on_a_stack_of_layers_and_on_convolutions() -> None:
    random = np.random.default_rng(5)
    layers = [random.normal(size=(2, 4, 3)) for _ in range(N)]
    grams = [
        np.stack([(a := random.normal(size=(9, 4))).T @ a for _ in range(2)]) for _ in range(N)
    ]
    expected = np.stack(
        [
            np.linalg.solve(
                sum(g[i] for g in grams),
                sum(g[i] @ x[i] for g, x in zip(grams, layers, strict=True)),
            )
            for i in range(2)
        ]
    )
    method = merging.view_as(merging.regmean(1.0), {"w": merging.View((1,), (2,), (0,))})
    numbers = [{"w": jnp.asarray(g, jnp.float32)} for g in grams]
    agree(run(method, layers, statistics=numbers), expected, 1e-3)
    assert merging.to_config(merging.from_config(**merging.to_config(method))) == merging.to_config(
        method
    )
    # PyTorch's [out, in]: the same numbers, transposed
    torch = merging.view_as(merging.regmean(1.0), {"w": merging.View((1,), (0,))})
    flat = [{"w": n["w"][0]} for n in numbers]
    ours = run(torch, [x[0].T for x in layers], statistics=flat)
    agree(ours, expected[0].T, 1e-3)
    with pytest.raises(errors.MergeError, match=r"\[4, 4\]"):
        run(merging.regmean(), [x[0].T for x in layers], statistics=flat)


def test_mats_takes_the_steps_of_conjugate_gradients(xs: list[Array], base: Array) -> None:
    grams = gram_matrices(40)
    left = sum(grams)
    right = sum(g @ x for g, x in zip(grams, xs, strict=True))
    numbers = [{"w": jnp.asarray(g, jnp.float32)} for g in grams]
    for start, x in (("mean", np.mean(xs, axis=0)), ("base", base.copy())):
        r = right - left @ x
        p = r.copy()
        for _ in range(3):
            image = left @ p
            step = (r * r).sum() / (p * image).sum()
            x = x + step * p
            after = r - step * image
            p = after + (after * after).sum() / (r * r).sum() * p
            r = after
        agree(run(merging.mats(3, start=start), xs, base, statistics=numbers), x, 1e-4)


def test_tsv(xs: list[Array], base: Array, taus: list[Array]) -> None:
    k = 9 // N
    parts = [np.linalg.svd(t, full_matrices=False) for t in taus]
    u = np.concatenate([p[0][:, :k] for p in parts], axis=1)
    s = np.concatenate([p[1][:k] for p in parts])
    v = np.concatenate([p[2][:k] for p in parts], axis=0)
    expected = base + 0.7 * orthogonal(u) @ np.diag(s) @ orthogonal(v)
    agree(run(merging.tsv(0.7), xs, base), expected, 1e-4)


def test_iso_c(xs: list[Array], base: Array, taus: list[Array]) -> None:
    summed = np.sum(taus, axis=0)
    mean = np.linalg.svd(summed, compute_uv=False).mean()
    agree(run(merging.iso_c(0.7), xs, base), base + 0.7 * mean * orthogonal(summed), 1e-4)


def test_iso_cts(xs: list[Array], base: Array, taus: list[Array]) -> None:
    each = round((9 - int(9 * 0.6)) / N)
    shared = 9 - each * N
    assert (each, shared) == (1, 6)
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    u, s, v = u[:, :shared], s[:shared], v[:shared]
    us, ss, vs = [u], [s], [v]
    for t in taus:
        a, b, c = np.linalg.svd(t - u @ u.T @ t, full_matrices=False)
        us, ss, vs = [*us, a[:, :each]], [*ss, b[:each]], [*vs, c[:each]]
    left, right = orthogonal(np.concatenate(us, axis=1)), orthogonal(np.concatenate(vs))
    expected = base + 0.7 * np.concatenate(ss).mean() * left @ right
    agree(run(merging.iso_cts(0.7, common=0.6), xs, base), expected, 1e-4)


def test_knots_on_average_is_the_average(xs: list[Array], base: Array, taus: list[Array]) -> None:
    """Merging linearly in the shared space is merging linearly."""
    ours = run(merging.knots(1.0, elect=False), xs, base, weights=[1.0, 2.0, 3.0])
    expected = sum(w * t for w, t in zip((1, 2, 3), taus, strict=True)) / 6
    agree(ours, base + expected)


def test_knots(xs: list[Array], base: Array, taus: list[Array]) -> None:
    u, s, v = np.linalg.svd(np.concatenate(taus), full_matrices=False)
    blocks = np.split(u, N)
    k = int(np.ceil(0.3 * blocks[0].size))
    kept = []
    for b in blocks:
        kth = np.sort(np.abs(b).ravel())[-k]
        kept.append(b * (np.abs(b) >= kth))
    sign = np.where(sum(kept) >= 0, 1, -1)
    mask = [np.sign(b) == sign for b in kept]
    mean = sum(b * m for b, m in zip(kept, mask, strict=True)) / np.maximum(sum(mask), 1)
    agree(run(merging.knots(0.3, 0.7), xs, base), base + 0.7 * mean @ np.diag(s) @ v, 1e-4)


def test_wudi_minimises_the_interference(xs: list[Array], base: Array, taus: list[Array]) -> None:
    grams = [t @ t.T / (t * t).sum() for t in taus]
    right = sum(g @ t for g, t in zip(grams, taus, strict=True))
    expected = np.linalg.solve(sum(grams), right)
    agree(run(merging.wudi(), xs, base), base + expected, 1e-3)
    agree(run(merging.wudi(iterations=60, rtol=1e-8), xs, base), base + expected, 1e-3)


def test_consensus(xs: list[Array], base: Array, taus: list[Array]) -> None:
    whole = sum(taus)
    used = np.sum([np.abs(t) > 0.4 * np.abs(whole - t) for t in taus], axis=0)
    agree(run(merging.consensus(0.7), xs, base), base + 0.7 * whole * (used >= 2))
    assert 0 < (used >= 2).mean() < 1


def test_emr(xs: list[Array], base: Array, taus: list[Array]) -> None:
    sign = np.sign(np.mean(taus, axis=0))
    size = np.max([np.abs(t) * (np.sign(t) == sign) for t in taus], axis=0)
    agree(run(merging.emr(), xs, base), base + sign * size)
    trees = [{"w": jnp.asarray(x, jnp.float32)} for x in xs]
    ground = {"w": jnp.asarray(base, jnp.float32)}
    unified = merging.merge(trees, merging.emr(), ground)
    for tree, tau in zip(trees, taus, strict=True):
        mask, factor = merging.emr_task(unified, tree, ground)
        expected = tau * sign * size > 0
        np.testing.assert_array_equal(mask["w"], expected)
        ratio = np.abs(tau).sum() / np.abs(sign * size * expected).sum()
        np.testing.assert_allclose(factor, ratio, rtol=1e-5)


def whole_model_masks(taus: list[dict[str, Array]], k: int) -> list[dict[str, Array]]:
    masks = []
    for tau in taus:
        flat = np.concatenate([np.abs(t).ravel() for t in tau.values()])
        mask = np.zeros(flat.size, bool)
        mask[np.argsort(-flat, kind="stable")[:k]] = True
        cut = np.cumsum([t.size for t in tau.values()])[:-1]
        split = np.split(mask, cut)
        masks.append({n: m.reshape(t.shape) for (n, t), m in zip(tau.items(), split, strict=True)})
    return masks


@pytest.mark.parametrize("coarse", [False, True])
def test_thresholds_of_the_whole_model(coarse: bool) -> None:
    """Leaves of different scale share a threshold; ties go to earlier leaves first."""
    random = np.random.default_rng(6)

    def delta() -> dict[str, Array]:
        drawn = {
            "a": random.normal(size=(5, 6)),
            "b": 3 * random.normal(size=(5, 6)),
            "c": random.normal(size=21),
        }
        return {n: np.round(x) if coarse else rounded(x) for n, x in drawn.items()}

    taus = [delta() for _ in range(2)]
    k = int(np.ceil(0.3 * 81))
    masks = whole_model_masks(taus, k)
    trees = [{n: jnp.asarray(x, jnp.float32) for n, x in t.items()} for t in taus]
    zero = {n: jnp.zeros_like(x) for n, x in trees[0].items()}
    stitched = merging.merge(trees, merging.localize_and_stitch(0.3), zero)
    signed = merging.merge(trees, merging.ties_whole(0.3), zero)
    for n in zero:
        kept = [t[n] * m[n] for t, m in zip(taus, masks, strict=True)]
        covered = sum((x != 0).astype(float) for x in kept)
        agree(np.asarray(stitched[n]), sum(kept) / np.maximum(covered, 1))
        sign = np.where(sum(kept) >= 0, 1, -1)
        mask = [np.sign(x) == sign for x in kept]
        mean = sum(x * m for x, m in zip(kept, mask, strict=True)) / np.maximum(sum(mask), 1)
        agree(np.asarray(signed[n]), mean)
    loose = merging.merge(trees[:1], merging.ties_whole(0.3, tie_rule=">="), zero)
    flat = np.concatenate([np.abs(t).ravel() for t in taus[0].values()])
    expected = (flat >= np.sort(flat)[-k]) & (flat > 0)
    assert sum(int((x != 0).sum()) for x in loose.values()) == expected.sum()
