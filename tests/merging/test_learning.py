"""Learned coefficients: known optima, bounds, grouping, and AdaMerging on real digits."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import ndimage
from sklearn.datasets import load_digits

import vcjax
from vcjax import errors, merging

Tree = Any


def tree(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    layer = {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)}
    flat = {"one": layer, "two": {"kernel": random.normal(size=(5, 5))}}
    return jax.tree.map(lambda x: x.astype("f"), flat)


BASE, MODELS = tree(9), [tree(0), tree(1)]
TRUE = {"one": [0.7, 0.1], "two": [0.2, 0.9]}
TARGET = merging.merge(MODELS, merging.adamerging(TRUE), BASE)


def distance(merged: Tree) -> jax.Array:
    parts = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), merged, TARGET)
    return sum(jax.tree.leaves(parts), start=jnp.zeros(()))


def optimum() -> np.ndarray:
    """The best weights for all layers alike, by least squares."""

    def task(model: Tree) -> np.ndarray:
        deltas = jax.tree.map(lambda x, b: np.ravel(x - b), jax.device_get(model), BASE)
        return np.concatenate(jax.tree.leaves(deltas))

    tasks = np.stack([task(model) for model in MODELS], axis=1)
    return np.linalg.lstsq(tasks, task(TARGET), rcond=None)[0]


def test_gradient_finds_the_best_weights_of_models() -> None:
    found = merging.optimise(
        merging.task_arithmetic,
        {"weights": 0.3},
        distance,
        MODELS,
        BASE,
        steps=300,
        optimizer=optax.adam(0.05),
    )
    np.testing.assert_allclose(found.weights, optimum(), atol=2e-3)
    assert len(found.losses) == 300
    assert found.losses[-1] < found.losses[0]
    merged = vcjax.merge(MODELS, found.method, BASE, weights=found.weights)
    assert float(distance(merged)) <= found.losses.min() * (1 + 1e-5)


@pytest.mark.parametrize("per", ["layer", "leaf"])
def test_gradient_finds_weights_of_layers(per: Any) -> None:
    found = merging.optimise(
        merging.task_arithmetic(),
        {"weights": 0.3},
        distance,
        MODELS,
        BASE,
        per=per,
        steps=300,
        optimizer=optax.adam(0.05),
    )
    expected = {"one/bias": "one", "one/kernel": "one", "two/kernel": "two"}
    for path, layer in expected.items():
        np.testing.assert_allclose(found.weights[path], TRUE[layer], atol=0.02)
    groups = ["one", "two"] if per == "layer" else list(expected)
    assert list(found.coefficients["weights"]) == groups
    merged = vcjax.merge(MODELS, found.method, BASE, weights=found.weights)
    assert float(distance(merged)) < 1e-2


def test_coefficients_of_any_method_by_layer_can_be_recorded() -> None:
    """SLERP with a t for every layer: no transform knows of it."""
    truth = {"one": merging.slerp(0.2), "two": merging.slerp(0.8)}
    wanted = merging.merge(MODELS, merging.partition(truth))

    def loss(merged: Tree) -> jax.Array:
        parts = jax.tree.map(lambda a, b: jnp.mean((a - b) ** 2), merged, wanted)
        return sum(jax.tree.leaves(parts), start=jnp.zeros(()))

    found = merging.optimise(
        merging.slerp, {"t": 0.5}, loss, MODELS, per="layer", steps=150, bounds=(0, 1)
    )
    ts = {layer: float(t) for layer, t in found.coefficients["t"].items()}
    assert ts == pytest.approx({"one": 0.2, "two": 0.8}, abs=0.03)
    again = merging.from_config(**merging.to_config(found.method))
    for a, b in zip(
        jax.tree.leaves(merging.merge(MODELS, again)), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=0.1)


def test_search_needs_no_gradient() -> None:
    """The share of signs that agree has none, and is the same in every run of a seed."""
    wanted = jnp.sign(TARGET["two"]["kernel"])

    def disagreement(merged: Tree) -> jax.Array:
        return jnp.mean(jnp.sign(merged["two"]["kernel"]) != wanted)

    runs = [
        merging.optimise(
            merging.task_arithmetic,
            {"weights": [0.0, 0.0]},
            disagreement,
            MODELS,
            BASE,
            by="search",
            steps=30,
            spread=0.3,
            bounds={"weights": (0, 1)},
            seed=seed,
        )
        for seed in (0, 0)
    ]
    found = runs[0]
    assert found.losses[-1] <= 0.04 < found.losses[0]
    assert (np.diff(found.losses) <= 0).all()
    assert ((found.weights >= 0) & (found.weights <= 1)).all()
    np.testing.assert_array_equal(found.weights, runs[1].weights)


def test_search_and_gradient_take_data_and_end_with_it() -> None:
    targets = [jnp.float32(0.5)] * 7

    def loss(merged: Tree, target: jax.Array) -> jax.Array:
        return (merged["w"] - target) ** 2

    for by in ("gradient", "search"):
        found = merging.optimise(
            merging.passthrough,
            {"scale": 0.4},
            loss,
            [{"w": jnp.float32(1)}],
            data=iter(targets),
            by=by,  # pyright: ignore[reportArgumentType]
        )
        assert len(found.losses) == 7
        assert found.losses[-1] < found.losses[0]


MISTAKES = [
    ({"start": {}}, "nothing to learn"),
    ({"start": {"weights": 0.3}, "weights": [1, 1]}, "to be learned"),
    ({"start": {"weights": [0.3] * 3}}, r"shape \[3\] for 2 models"),
    ({"start": {"scael": 0.3}}, "unexpected keyword argument 'scael'"),
    ({"start": {"scale": 0.3}, "per": "block"}, "per='block' is not an option"),
    ({"start": {"scale": np.nan}}, "loss at the start is nan"),
    ({"start": {"scale": 0.3}, "by": "search", "population": 1}, "population=1"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes_are_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.MergeError, match=message):
        merging.optimise(merging.task_arithmetic, loss=distance, trees=MODELS, base=BASE, **given)


def test_layers_of_nnx_states() -> None:
    def state(seed: int) -> Any:
        return nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(seed)))

    found = merging.optimise(
        merging.linear,
        {"weights": 0.5},
        lambda tree: jnp.asarray(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))),
        [state(0), state(1)],
        per="leaf",
        steps=1,
    )
    assert {path.partition("/")[0] for path in found.weights} == {"bias", "kernel"}


# AdaMerging on digits


def init(key: jax.Array, sizes: tuple[int, ...] = (64, 128, 64, 10)) -> Tree:
    pairs = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(pairs))
    return {
        f"dense_{i}": {
            "kernel": jax.random.normal(own, pair) * jnp.sqrt(2 / pair[0]),
            "bias": jnp.zeros(pair[1]),
        }
        for i, (own, pair) in enumerate(zip(keys, pairs, strict=True))
    }


def apply(params: Tree, images: jax.Array) -> jax.Array:
    x = images.reshape(len(images), -1)
    for i in range(len(params)):
        layer = params[f"dense_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


@functools.partial(jax.jit, static_argnames=("steps", "rate"))
def train(
    params: Tree, images: jax.Array, labels: jax.Array, key: jax.Array, steps: int, rate: float
) -> Tree:
    rule = optax.adam(rate)

    def step(carry: Any, own: jax.Array) -> Any:
        params, state = carry
        chosen = jax.random.randint(own, (64,), 0, len(images))

        def loss(p: Tree) -> jax.Array:
            scores = apply(p, images[chosen])
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels[chosen]).mean()

        change, state = rule.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, change), state), None

    return jax.lax.scan(step, (params, rule.init(params)), jax.random.split(key, steps))[0][0]


@functools.cache
def digits() -> tuple[dict[str, tuple[Any, Any]], tuple[Any, Any], Any]:
    """Three views of the digits, to train on and held out; the plain ones; held-out labels."""
    pixels, labels = load_digits(return_X_y=True)
    plain = np.asarray(pixels / 16, np.float32).reshape(-1, 8, 8)
    noise = 0.4 * np.random.default_rng(5).normal(size=plain.shape)
    views = {
        "faded": 0.5 + 0.5 * plain,
        "tilted": ndimage.rotate(plain, 30, axes=(1, 2), reshape=False, order=1),
        "noisy": np.clip(plain + noise, 0, 1).astype(np.float32),
    }
    order = np.random.default_rng(0).permutation(len(plain))
    test, rest = np.split(order, [540])
    labels = np.asarray(labels, np.int32)
    return (
        {name: (x[rest], x[test]) for name, x in views.items()},
        (plain[rest], labels[rest]),
        labels[test],
    )


def accuracy(params: Tree) -> jax.Array:
    """The mean over the three views, on held-out digits."""
    views, _, labels = digits()
    hits = [(apply(params, test).argmax(axis=-1) == labels).mean() for _, test in views.values()]
    return jnp.mean(jnp.stack(hits))


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_adamerging_beats_uniform_task_arithmetic_without_labels(seed: int) -> None:
    """Of the coefficient that it starts from, which is nearly the mean of the three models.

    By 4.8, 4.7 and 2.2 points. The best of a sweep with labels is better still here (by 7
    on the first two seeds): networks this small are surest where one task has won.
    """
    views, (images, labels), _ = digits()
    key = jax.random.key(seed)
    base = train(init(key), images, labels, key, 600, 1e-3)
    models = [train(base, own, labels, key, 300, 3e-4) for own, _ in views.values()]

    def batches() -> Iterator[list[Any]]:
        random = np.random.default_rng(seed)
        while True:
            yield [test[random.integers(len(test), size=64)] for _, test in views.values()]

    found = merging.adamerge(models, base, apply, batches(), steps=200)
    merged = merging.merge(models, found.method, base)
    uniform = merging.merge(models, merging.task_arithmetic(0.3), base)
    assert float(accuracy(merged) - accuracy(uniform)) > 0.01
    assert found.losses[-20:].mean() < found.losses[:20].mean()
    record = merging.to_config(found.method)
    assert record["name"] == "adamerging"
    assert len(record["parameters"]["coefficients"]["items"]) == 6
