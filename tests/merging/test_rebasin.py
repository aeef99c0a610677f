"""Git Re-Basin: symmetries that are found are exact, and models trained apart come together."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from vcjax import errors, merging


class MLP(nn.Module):
    widths: tuple[int, ...] = (12, 9)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(3)(x)


class CNN(nn.Module):
    """Both ways to end a stack of convolutions, norms between them, and a depthwise one."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6)(x))
        x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3))(x)), (2, 2), (2, 2))
        flat = nn.relu(nn.Dense(7)(x.reshape(len(x), -1)))
        return nn.Dense(3)(flat) + nn.Dense(3)(x.mean(axis=(1, 2)))


class Transformer(nn.Module):
    """A block with a residual stream, an embedding and attention."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(11, 8)(tokens)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3)(x.mean(axis=1))


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Dense(256)(x)))


class Perceptron(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.a = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.b = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(nnx.relu(self.norm(self.a(x))))


def shaken(tree: Any) -> Any:
    """All leaves at random, so that every unit is unlike every other."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(random.uniform(0.1, 1, x.shape), x.dtype), tree)


def linen(model: nn.Module, x: jax.Array) -> tuple[Callable[..., Any], Any, jax.Array]:
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return model.apply, shaken(shapes), x


def nnx_model() -> tuple[Callable[..., Any], Any, jax.Array]:
    graph, state = nnx.split(Perceptron(nnx.Rngs(0)))
    return lambda tree, x: nnx.merge(graph, tree)(x), shaken(state), jnp.ones((2, 4))


CASES = {
    "mlp": (lambda: linen(MLP(), jnp.ones((2, 4))), [9, 12]),
    "cnn": (lambda: linen(CNN(), jnp.ones((2, 8, 8, 2))), [5, 6, 7]),
    "transformer": (
        lambda: linen(Transformer(), jnp.arange(10).reshape(2, 5)),
        [2, 4, 4, 8, 16],  # heads, their two inner widths, the residual stream, the MLP
    ),
    "nnx": (nnx_model, [6]),
}


@pytest.mark.parametrize("name", CASES)
def test_units_permuted_at_random_are_found_again_exactly(name: str) -> None:
    make, sizes = CASES[name]
    apply, tree, x = make()
    spec = merging.permutation_spec(apply, tree, x)
    assert sorted(spec.sizes.values()) == sizes
    random = np.random.default_rng(1)
    permutations = {unit: random.permutation(size) for unit, size in spec.sizes.items()}
    moved = merging.permute(tree, spec, permutations)
    compute = jax.jit(apply)
    np.testing.assert_allclose(compute(moved, x), compute(tree, x), rtol=1e-5, atol=1e-5)
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(tree), strict=True)
    )
    _, back = merging.align([tree, moved], spec)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    merged = merging.git_rebasin([tree, moved], spec)
    jax.tree.map(np.testing.assert_array_equal, merged, tree)


def test_what_an_operation_tells_apart_stays() -> None:
    """Every program below treats some hidden units unlike others."""
    tree = {"in": jnp.ones((3, 6)), "out": jnp.ones((6, 2)), "half": jnp.ones((3, 5))}
    table = jnp.arange(6.0)

    def found(act: Callable[[jax.Array], jax.Array], out: str = "out") -> list[int]:
        spec = merging.permutation_spec(
            lambda t, x: act(x @ t["in"]) @ t[out], tree, jnp.ones((1, 3))
        )
        return list(spec.sizes.values())

    assert found(jnp.tanh) == [6]  # and nothing of the leaf that is not used
    assert found(lambda h: jax.nn.softmax(h)) == [6]
    assert found(lambda h: h * table) == []
    assert found(lambda h: jnp.cumsum(h, axis=-1)) == []
    assert found(lambda h: h[:, ::-1]) == []
    assert found(lambda h: jnp.sort(h, axis=-1)) == []
    assert found(lambda h: jnp.concatenate([h[:, 3:], h[:, :3]], axis=-1)) == []
    assert found(lambda h: jax.lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x), h)) == []
    assert found(lambda h: jax.nn.one_hot(h.argmax(-1), 6)) == []
    # pairs of neighbours are summed: the pairs may be moved, and the two of a pair
    assert sorted(found(lambda h: h.reshape(-1, 3, 2).sum(2), "half")) == [2, 3]


def test_a_spec_of_names_is_the_one_of_the_program() -> None:
    apply, tree, x = linen(MLP(), jnp.ones((2, 4)))
    derived = merging.permutation_spec(apply, tree, x)
    named = merging.chain_spec(tree["params"])
    assert named.sizes == {"Dense_0": 12, "Dense_1": 9}
    for name in named.sizes:
        where = {(f"params/{path}", at) for path, at in named.places(name)}
        assert where in [set(derived.places(other)) for other in derived.sizes]


def test_a_chain_of_convolutions_and_norms_by_name() -> None:
    class Chain(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(4, (3, 3), name="stem")(x)
            x = nn.relu(nn.GroupNorm(num_groups=None, group_size=1, name="norm")(x))
            x = nn.relu(nn.Conv(5, (3, 3), name="body")(x))
            return nn.Dense(3, name="head")(x.reshape(len(x), -1))

    apply, tree, x = linen(Chain(), jnp.ones((2, 4, 4, 1)))
    tree = tree["params"]
    spec = merging.chain_spec(tree, ["stem", "norm", "body", "head"])
    assert spec.sizes == {"stem": 4, "body": 5}
    moved = merging.permute(tree, spec, {"stem": [2, 0, 3, 1], "body": [4, 3, 2, 0, 1]})
    np.testing.assert_allclose(apply({"params": moved}, x), apply({"params": tree}, x), rtol=1e-5)
    with pytest.raises(errors.MergeError, match="does not follow 5 outputs"):
        merging.chain_spec(tree, ["stem", "body", "norm", "head"])
    with pytest.raises(errors.MergeError, match="no layer 'stern'"):
        merging.chain_spec(tree, ["stern"])


def test_mistakes_are_told() -> None:
    tree = {"in": np.ones((3, 4)), "out": np.ones((4, 2))}
    spec = merging.PermutationSpec.of(tree, {"in": (None, "h"), "out": ("h", None)})
    with pytest.raises(errors.MergeError, match="permute 3 and 2 places"):
        merging.PermutationSpec.of(tree, {"in": ("h", None), "out": (None, "h")})
    with pytest.raises(errors.MergeError, match="not in the tree"):
        merging.PermutationSpec.of(tree, {"inn": ("h", None)})
    with pytest.raises(errors.MergeError, match="no permutation of 4 places"):
        merging.permute(tree, spec, {"h": [0, 1, 2, 2]})
    with pytest.raises(errors.MergeError, match="no permutation 'g'"):
        merging.permute(tree, spec, {"g": [0, 1, 2, 3]})
    with pytest.raises(errors.MergeError, match="the tree has"):
        merging.match_weights(tree, {"in": np.ones((3, 5)), "out": np.ones((4, 2))}, spec)
    broken = {"in": np.full((3, 4), np.nan), "out": tree["out"]}
    with pytest.raises(errors.MergeError, match="not all finite"):
        merging.match_weights(tree, broken, spec)


def test_leaves_that_are_no_numbers_stay() -> None:
    tree = {"in": np.eye(3, 4), "out": np.eye(4, 2), "step": 3, "name": "a"}
    spec = merging.PermutationSpec.of(tree, {"in": (None, "h"), "out": ("h", None)})
    moved = merging.permute(tree, spec, {"h": [3, 2, 1, 0]})
    assert (moved["step"], moved["name"]) == (3, "a")
    assert merging.git_rebasin([tree, moved], spec)["name"] == "a"


def test_several_models_are_brought_together() -> None:
    apply, tree, x = linen(MLP(), jnp.ones((2, 4)))
    spec = merging.permutation_spec(apply, tree, x)
    random = np.random.default_rng(2)
    noisy = []
    for _ in range(3):
        near = jax.tree.map(lambda w: w + 0.01 * random.normal(size=w.shape), tree)
        order = {unit: random.permutation(n) for unit, n in spec.sizes.items()}
        noisy.append(merging.permute(near, spec, order))
    aligned = merging.align([tree, *noisy], spec)
    for model in aligned:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.06), model, tree)
    weighted = merging.git_rebasin([tree, *noisy], spec, merging.linear(), weights=[1, 0, 0, 0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), weighted, tree)


def test_the_loss_barrier_of_models_trained_apart_falls() -> None:
    """Two MLPs on digits, from other weights and on other batches."""
    pixels, labels = load_digits(return_X_y=True)
    images = jnp.asarray(pixels / 16, jnp.float32)
    train, test = slice(0, 1300), slice(1300, None)
    model, rule = Wide(), optax.adam(1e-3)

    def loss(params: Any, where: Any) -> jax.Array:
        scores = jnp.asarray(model.apply({"params": params}, images[where]))
        wanted = jnp.asarray(labels)[where]
        return optax.softmax_cross_entropy_with_integer_labels(scores, wanted).mean()

    @jax.jit
    def trained(key: jax.Array) -> Any:
        params = model.init(key, images[:1])["params"]

        def step(carry: Any, own: jax.Array) -> Any:
            params, state = carry
            slope = jax.grad(loss)(params, jax.random.randint(own, (64,), 0, train.stop))
            change, state = rule.update(slope, state)
            return (optax.apply_updates(params, change), state), None

        keys = jax.random.split(jax.random.fold_in(key, 1), 600)
        return jax.lax.scan(step, (params, rule.init(params)), keys)[0][0]

    one, other = trained(jax.random.key(0)), trained(jax.random.key(1))
    ends = [float(loss(params, test)) for params in (one, other)]
    assert max(ends) < 0.4

    def barrier(a: Any, b: Any) -> float:
        """How far the loss half-way is above the mean of the ends."""
        return float(loss(merging.merge([a, b]), test)) - sum(ends) / 2

    spec = merging.permutation_spec(lambda p, x: model.apply({"params": p}, x), one, images[:1])
    matched = merging.align([one, other], spec)[1]
    np.testing.assert_allclose(float(loss(matched, test)), ends[1], rtol=1e-4)
    before, after = barrier(one, other), barrier(one, matched)
    assert after < 0.5 * before, (before, after)
