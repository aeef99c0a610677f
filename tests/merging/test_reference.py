"""Each method against its formula, written anew in NumPy float64 (sorting where we do not)."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import merging

Array = np.ndarray
SHAPE = (9, 7)


@pytest.fixture
def base() -> Array:
    return np.random.default_rng(9).normal(size=SHAPE)


@pytest.fixture
def xs() -> list[Array]:
    random = np.random.default_rng(1)
    # float32 values, so that both sides start from the same numbers
    return [random.normal(size=SHAPE).astype(np.float32).astype(float) for _ in range(4)]


@pytest.fixture(autouse=True)
def same_base(base: Array) -> None:
    base[...] = base.astype(np.float32)


def run(method: merging.MergeMethod, xs: list[Array], base: Any = None, **more: Any) -> Array:
    grounds = None if base is None else {"w": jnp.asarray(base, jnp.float32)}
    trees = [{"w": jnp.asarray(x, jnp.float32)} for x in xs]
    return np.asarray(merging.merge(trees, method, grounds, **more)["w"], float)


def agree(ours: Array, theirs: Array) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-6)


def total(arrays: Iterable[Array]) -> Array:
    return np.sum(list(arrays), axis=0)


def top(x: Array, k: int) -> Array:
    """Mask of the k largest magnitudes, lowest flat index first among equals."""
    order = np.argsort(-np.abs(x).ravel(), kind="stable")
    mask = np.zeros(x.size, bool)
    mask[order[:k]] = True
    return mask.reshape(x.shape)


def elect(deltas: list[Array], weights: list[float], normalize: bool) -> Array:
    """mergekit's consensus: weighted sum decides, + on zero, divided by agreeing weights."""
    weighted = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    mask = [np.sign(v) == sign for v in weighted]
    mixed = total(v * m for v, m in zip(weighted, mask, strict=True))
    divisor = total(w * m for w, m in zip(weights, mask, strict=True))
    return mixed / np.where(divisor == 0, 1, divisor) if normalize else mixed


def test_linear(xs: list[Array]) -> None:
    weights = [1.0, 2.0, -0.5, 3.0]
    expected = total(w * x for w, x in zip(weights, xs, strict=True))
    agree(run(merging.linear(normalize=False), xs, weights=weights), expected)
    agree(run(merging.linear(), xs, weights=weights), expected / sum(weights))
    agree(run(merging.average(), xs), np.mean(xs, axis=0))


def test_linear_rounds_once() -> None:
    """bfloat16 sums are those of float32, rounded at the end."""
    random = np.random.default_rng(0)
    xs = [jnp.asarray(random.normal(size=1000), jnp.bfloat16) for _ in range(7)]
    ours = merging.merge([{"w": x} for x in xs])["w"]
    exact = sum(np.asarray(x, np.float64) for x in xs) / 7
    half_a_step = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 8)
    assert (np.abs(np.asarray(ours, np.float64) - exact) <= half_a_step * 1.0001).all()


def test_task_arithmetic(xs: list[Array], base: Array) -> None:
    weights = [1.0, 0.5, 2.0, -1.0]
    mixed = sum(w * (x - base) for w, x in zip(weights, xs, strict=True))
    agree(run(merging.task_arithmetic(0.3), xs, base, weights=weights), base + 0.3 * mixed)
    normal = merging.task_arithmetic(0.3, normalize=True)
    agree(run(normal, xs, base, weights=weights), base + 0.3 * mixed / sum(weights))
    cancel = [1.0, -1.0, 1.0, -1.0]
    mixed = sum(w * (x - base) for w, x in zip(cancel, xs, strict=True))
    normal = merging.task_arithmetic(normalize=True)
    agree(run(normal, xs, base, weights=cancel), base + mixed)


def check_ties(
    xs: list[Array], base: Array, fraction: float, weights: list[float], **options: Any
) -> None:
    """`options` are those of `ties`; a density in them is the same number, traced."""
    given = {"density": fraction, "normalize": True, "rounding": "ceil"} | options
    if given["rounding"] == "ceil":
        k = int(np.ceil(fraction * base.size - 1e-9))
    else:
        k = int(fraction * base.size)
    deltas = [(x - base) * top((x - base).astype(np.float32), k) for x in xs]
    expected = base + 0.7 * elect(deltas, weights, given["normalize"])
    agree(run(merging.ties(scale=0.7, **given), xs, base, weights=weights), expected)


WEIGHTS = pytest.mark.parametrize("weights", [[1.0] * 4, [0.5, 1.0, 2.0, -1.0]])


@pytest.mark.parametrize("density", [0.0, 0.07, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rounding", ["ceil", "floor"])
@WEIGHTS
def test_ties(
    xs: list[Array],
    base: Array,
    density: float,
    normalize: bool,
    rounding: str,
    weights: list[float],
) -> None:
    """Densities are traced here, so that all of them share a compiled program."""
    traced = jnp.float32(density)
    check_ties(xs, base, density, weights, density=traced, normalize=normalize, rounding=rounding)


@pytest.mark.parametrize(
    ("density", "normalize", "rounding"),
    [(0.0, True, "ceil"), (0.07, False, "floor"), (0.2, True, "ceil"), (1.0, False, "ceil")],
)
@WEIGHTS
def test_ties_of_static_density(
    xs: list[Array],
    base: Array,
    density: float,
    normalize: bool,
    rounding: str,
    weights: list[float],
) -> None:
    check_ties(xs, base, density, weights, normalize=normalize, rounding=rounding)


def test_ties_with_many_equal_magnitudes() -> None:
    """Both tie rules, on the few values that bfloat16 deltas have."""
    random = np.random.default_rng(2)
    delta = random.integers(-3, 4, size=(40, 5)).astype(float)
    zero = np.zeros_like(delta)
    exact = run(merging.ties(0.3), [delta], zero)
    np.testing.assert_array_equal(exact, delta * top(delta, 60))
    loose = run(merging.ties(0.3, tie_rule=">="), [delta], zero)
    kth = np.sort(np.abs(delta).ravel())[-60]
    np.testing.assert_array_equal(loose, delta * (np.abs(delta) >= kth))


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.05), (0.95, 0.2), (0.3, 0.0)])
@pytest.mark.parametrize("traced", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_breadcrumbs(
    xs: list[Array], base: Array, density: float, gamma: float, traced: bool
) -> None:
    """Traced coefficients share one compiled program; static ones are counted exactly."""
    n = base.size
    k = int(density * n)
    drop = min(int(gamma * n), n - k)
    deltas = []
    for x in xs:
        d = (x - base).astype(np.float32)
        deltas.append((x - base) * (top(d, drop + k) & ~top(d, drop)))
    kept, largest = (jnp.float32(x) if traced else x for x in (density, gamma))
    linear = merging.breadcrumbs(kept, largest, 0.5, rounding="floor")
    agree(run(linear, xs, base), base + 0.5 * sum(deltas))
    signed = merging.breadcrumbs_ties(kept, largest, 0.5, rounding="floor")
    agree(run(signed, xs, base), base + 0.5 * elect(deltas, [1.0] * 4, False))


def test_slerp(xs: list[Array]) -> None:
    a, b = xs[:2]
    for t in (0.0, 0.25, 0.5, 1.0):
        theta = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
        expected = (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)
        agree(run(merging.slerp(t), [a, b]), expected)
        agree(run(merging.slerp(t), [b], a), expected)  # mergekit's form: base is the first
    near = (a + 1e-3 * b).astype(np.float32).astype(float)
    agree(run(merging.slerp(0.3), [a, near]), 0.7 * a + 0.3 * near)
    agree(run(merging.slerp(0.3), [a, -a]), 0.4 * a)


def reference_nuslerp(t: float, a: Array, b: Array, axis: int | None) -> Array:
    def norm(x: Array) -> Any:
        return np.maximum(np.sqrt((x * x).sum(axis=axis, keepdims=True)), 1e-7)

    theta = np.arccos(np.clip((a * b / norm(a) / norm(b)).sum(axis=axis, keepdims=True), -1, 1))
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


@pytest.mark.parametrize(("flatten", "rows"), [(True, False), (False, False), (False, True)])
def test_nuslerp(xs: list[Array], base: Array, flatten: bool, rows: bool) -> None:
    axis = None if flatten else (0 if rows else -1)
    a, b = xs[:2]
    method = merging.nuslerp(flatten, rows)
    agree(run(method, [a, b], weights=[1.0, 3.0]), reference_nuslerp(0.75, a, b, axis))
    expected = base + reference_nuslerp(0.75, a - base, b - base, axis)
    agree(run(method, [a, b], base, weights=[1.0, 3.0]), expected)
    agree(run(method, [a, b], weights=[1.0, -1.0]), reference_nuslerp(0.5, a, b, axis))


def test_multislerp(xs: list[Array], base: Array) -> None:
    """mergekit's steps, one by one: the tangent is zero, so the mean direction stays."""
    weights = np.array([0.1, 0.4, 0.2, 0.3]) * 3
    w = weights / weights.sum()
    for ground in (None, base):
        deltas = [x if ground is None else x - ground for x in xs]
        norms = np.array([np.linalg.norm(d) for d in deltas])
        units = [d / (n + 1e-8) for d, n in zip(deltas, norms, strict=True)]
        mean = sum(wi * u for wi, u in zip(w, units, strict=True))
        mean = mean / np.linalg.norm(mean)
        tangent = sum(wi * (u - (u * mean).sum() * mean) for wi, u in zip(w, units, strict=True))
        size = np.linalg.norm(tangent) + 1e-8
        point = mean * np.cos(size) + tangent * np.sin(size) / size
        expected = point * (norms * w).sum() + (0 if ground is None else ground)
        agree(run(merging.multislerp(), xs, ground, weights=list(weights)), expected)


def log_map(m: Array, u: Array) -> Array:
    dot = np.clip((m * u).sum(), -1, 1)
    theta = np.arccos(dot)
    return theta / np.sin(theta) * (u - dot * m)


def exp_map(m: Array, v: Array) -> Array:
    size = np.linalg.norm(v)
    return np.cos(size) * m + np.sin(size) * v / size


def test_karcher_and_log_map(xs: list[Array]) -> None:
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / n for x, n in zip(xs, norms, strict=True)]
    mean = total(units) / np.linalg.norm(total(units))
    once = exp_map(mean, total(log_map(mean, u) for u in units) / 4)
    agree(run(merging.multislerp(log_map=True), xs), once * np.mean(norms))
    for _ in range(100):
        mean = exp_map(mean, total(log_map(mean, u) for u in units) / 4)
    agree(run(merging.karcher(iterations=60, tol=1e-7), xs), mean * np.mean(norms))
    residual = total(log_map(mean, u) for u in units)
    assert np.linalg.norm(residual) < 1e-12  # it is the Karcher mean


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock(xs: list[Array], base: Array, filter_wise: bool) -> None:
    axis = -1 if filter_wise else None
    near = [base + 0.2 * x + 0.3 for x in xs]
    near = [x.astype(np.float32).astype(float) for x in near]
    deltas = [x - base for x in near]

    def cosine(a: Array, b: Array) -> Any:
        lengths = [np.sqrt((v * v).sum(axis=axis, keepdims=True)) for v in (a, b)]
        return (a * b).sum(axis=axis, keepdims=True) / np.maximum(lengths[0] * lengths[1], 1e-6)

    pairs = [cosine(deltas[i], deltas[j]) for i in range(4) for j in range(i + 1, 4)]
    for average, c in (
        ("cosine", np.mean(pairs, axis=0)),
        ("angle", np.cos(np.mean(np.arccos(pairs), axis=0))),
    ):
        t = 4 * c / (1 + 3 * c)
        expected = t * np.mean(near, axis=0) + (1 - t) * base
        agree(run(merging.model_stock(filter_wise, average), near, base), expected)


@pytest.mark.parametrize("topk", [1.0, 0.3])
def test_sce(xs: list[Array], base: Array, topk: float) -> None:
    deltas = np.stack([x - base for x in xs])
    if topk < 1:
        deltas = deltas * top(deltas.var(axis=0), int(topk * base.size))
    weights = (deltas**2).mean(axis=(1, 2))
    weights = weights / weights.sum()
    mask = np.sign(deltas) == np.where(deltas.sum(axis=0) >= 0, 1, -1)
    share = weights[:, None, None] * mask
    divisor = share.sum(axis=0)
    expected = base + (deltas * share).sum(axis=0) / np.where(divisor == 0, 1, divisor)
    agree(run(merging.sce(topk), xs, base), expected)


def test_sce_of_tiny_changes_is_uniform(xs: list[Array]) -> None:
    tiny = [1e-4 * x for x in xs[:2]]
    zero = np.zeros(SHAPE)
    ours = run(merging.sce(), tiny, zero)
    np.testing.assert_allclose(ours, elect(tiny, [1, 1], True), rtol=1e-5, atol=1e-9)
    assert np.abs(ours - run(merging.sce(least=0.0), tiny, zero)).max() > 1e-6


def test_ram(base: Array) -> None:
    random = np.random.default_rng(3)
    deltas = [random.normal(size=SHAPE) * (random.random(SHAPE) < 0.5) for _ in range(3)]
    xs = [(base + d).astype(np.float32).astype(float) for d in deltas]
    deltas = [x - base for x in xs]
    changed = np.stack([np.abs(d) > 1e-5 for d in deltas])
    number = changed.sum(axis=0)
    expected = base + sum(deltas * changed) / np.maximum(number, 1)
    agree(run(merging.ram(), xs, base), expected)
    out = base.copy()
    for d, m in zip(deltas, changed, strict=True):
        rho = (m & (number > 1)).sum() / max((m & (number == 1)).sum(), 1e-5)
        out += d * m * np.where(number > 1, 1 / np.maximum(number, 1), 1 + 0.3 * np.clip(rho, 0, 5))
    agree(run(merging.ram_plus(0.3, 5.0), xs, base), out)


def test_nearswap(xs: list[Array]) -> None:
    a, b = xs[:2]
    b = np.where(b > 1, a, b)
    w = np.ones(SHAPE)
    np.divide(0.3, np.abs(a - b), out=w, where=a != b)
    w = np.clip(w, 0, 1)
    agree(run(merging.nearswap(0.3), [a, b]), w * b + (1 - w) * a)
    agree(run(merging.nearswap(0.3), [b], a), w * b + (1 - w) * a)


def test_arcee_fusion(xs: list[Array]) -> None:
    a, b = xs[:2]

    def softmax(x: Array) -> Array:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True) + 1e-8

    p, q = softmax(b), softmax(a)
    score = np.abs(b - a) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(score.ravel())
    q1, q2, q3 = (ordered[int(f * (score.size - 1))] for f in (0.25, 0.5, 0.75))
    mask = score >= q2 + 1.5 * (q3 - q1)
    assert 0 < mask.sum() < mask.size / 2
    agree(run(merging.arcee_fusion(), [a, b]), np.where(mask, b, a))
