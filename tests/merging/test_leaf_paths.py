"""One leaf path: seeds, globs, weights and statistics name the same leaves in memory and stored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

import vcjax
from vcjax import errors, merging, tree

SHAPE = (4, 6)
PATHS = [
    *("0/%2F", "0/a%2Fb", "0/h[0]", "1/2", "1/10", "2/inner/weight", "2/outer"),
    *("3/layers/0/kernel", "3/norm/scale"),
]


class Inner(NamedTuple):
    weight: Any


class Outer(NamedTuple):
    inner: Inner
    outer: Any


class Module(nnx.Module):
    def __init__(self, draw: Any):
        self.layers = nnx.List([nnx.Dict(kernel=nnx.Param(draw()))])
        self.norm = nnx.Dict(scale=nnx.Param(draw()))


def model(seed: int) -> Any:
    """Keys with `/` and wildcards, int keys, namedtuples within each other, and an `nnx.State`."""
    random = np.random.default_rng(seed)

    def draw() -> jax.Array:
        return jax.numpy.asarray(random.normal(size=SHAPE), np.float32)

    return [
        {"a/b": draw(), "h[0]": draw(), "/": draw()},
        {10: draw(), 2: draw()},
        Outer(Inner(draw()), draw()),
        nnx.state(Module(draw)),
    ]


def stored(method: merging.MergeMethod, count: int = 2, **given: Any) -> Any:
    """The merge by `Repository.merge_models` of commits."""
    repo = vcjax.Repository.init("memory://leaf-paths-" + np.random.bytes(8).hex())
    commits = [repo.commit(model(seed), f"model {seed}").digest for seed in range(count)]
    base = repo.model(repo.commit(model(9), "base"))
    return repo.restore(repo.merge_models(commits, method, base=base, **given))


def in_memory(method: merging.MergeMethod, count: int = 2, **given: Any) -> Any:
    return vcjax.merge([model(seed) for seed in range(count)], method, base=model(9), **given)


def assert_same(ours: Any, theirs: Any) -> None:
    ours, theirs = (tree.template(x).targets for x in (ours, theirs))
    assert list(ours) == list(theirs) == PATHS
    for path in PATHS:
        np.testing.assert_array_equal(np.asarray(ours[path]), np.asarray(theirs[path]), path)


RANDOM = [name for name in merging.methods() if merging.from_config(name).random]
RULES: Mapping[str, merging.MergeMethod] = {
    "0/a%2Fb": merging.task_arithmetic(0.25),
    "0/*": merging.task_arithmetic(0.5),
    "1/10": merging.passthrough(3.0),
    "2/inner": merging.average(),
    "3/**/kernel": merging.passthrough(5.0),
}
COMPOSED = {
    "partition": merging.partition(RULES, default=merging.keep()),
    "partition of random methods": merging.partition(
        {glob: merging.dare_linear(0.5) for glob in RULES}, default=merging.dare_ties(0.5)
    ),
    "masked": merging.masked(merging.average(), ["0/%2F", "0/h[[]0]", "3/norm/scale"]),
    "view_as": merging.view_as(
        merging.partition({"3": merging.iso_c()}, default=merging.average()),
        {"3/layers/*/kernel": merging.View((1,), (0,))},
    ),
}


def test_the_tables_name_every_random_method_and_every_partition() -> None:
    assert RANDOM == ["dare_linear", "dare_ties", "della", "della_linear"]
    assert all(method.rules for method in COMPOSED.values())


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_draw_the_same_numbers(name: str) -> None:
    method = merging.from_config(name, {"density": 0.5})
    ours = in_memory(method, key=3)
    assert_same(ours, stored(method, key=3))
    other = map(jax.tree.leaves, (ours, in_memory(method, key=4)))
    assert all((np.asarray(a) != b).any() for a, b in zip(*other, strict=True))


@pytest.mark.parametrize("name", COMPOSED)
def test_globs_cover_the_same_leaves(name: str) -> None:
    method = COMPOSED[name]
    given = {"key": 3} if method.random else {}
    assert_same(in_memory(method, **given), stored(method, **given))


def test_rules_are_found_by_the_path_that_is_stored() -> None:
    merged = tree.template(in_memory(COMPOSED["partition"])).targets
    ours, theirs, base = (tree.template(model(seed)).targets for seed in (0, 1, 9))
    for path in PATHS:
        task = ours[path] - base[path] + (theirs[path] - base[path])
        expected = {
            "0/a%2Fb": base[path] + 0.25 * task,
            "0/%2F": base[path] + 0.5 * task,
            "0/h[0]": base[path] + 0.5 * task,
            "1/10": 3 * ours[path],
            "2/inner/weight": (ours[path] + theirs[path]) / 2,
            "3/layers/0/kernel": 5 * ours[path],
        }.get(path, base[path])
        np.testing.assert_allclose(merged[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("glob", ["0/a/b", "3/layers/0/kernel/value", "**/value"])
def test_globs_that_are_no_paths_are_refused_by_both(glob: str) -> None:
    method = merging.partition({glob: merging.keep()}, default=merging.average())
    for merge in (in_memory, stored):
        with pytest.raises(errors.MergeError, match="no leaf path matches") as caught:
            merge(method)
        assert "%2F" in str(caught.value.hint)
        with pytest.raises(errors.MergeError, match="no leaf path matches"):
            merge(merging.average(), weights={glob: [1.0, 2.0]})


def test_weights_by_path_also_one_model_at_a_time() -> None:
    weights = {"0/a%2Fb": [3.0, 1.0], "3/**": [1.0, 0.0]}
    ours = in_memory(merging.average(), weights=weights)
    assert_same(ours, stored(merging.average(), weights=weights))
    models = (model(seed) for seed in range(2))
    assert_same(ours, merging.fold(models, merging.average(), model(9), weights))
    kept = tree.template(ours).targets["3/norm/scale"]
    np.testing.assert_array_equal(kept, tree.template(model(0)).targets["3/norm/scale"])


def test_folds_take_partitions_and_draw_the_same_numbers() -> None:
    method = COMPOSED["partition of random methods"]
    assert_same(
        in_memory(method, key=3),
        merging.fold((model(seed) for seed in range(2)), method, model(9), key=3),
    )


def test_weights_that_run_out_are_refused() -> None:
    for weights in ([1.0], [1.0] * 3, {"**": [1.0]}, {"**": [1.0] * 3}):
        with pytest.raises(errors.MergeError, match="weights"):
            merging.fold((model(seed) for seed in range(2)), merging.average(), None, weights)


def test_statistics_are_a_tree_or_by_leaf_path() -> None:
    trees = [model(0), model(1)]
    squares = [jax.tree.map(np.square, one) for one in trees]
    expected = vcjax.merge(trees, merging.fisher(), statistics=squares)
    by_path = [dict(tree.template(one).targets) for one in squares]
    assert_same(expected, vcjax.merge(trees, merging.fisher(), statistics=by_path))
    flat = [{"a/b": x[0]["a/b"], "c": x[1][2]} for x in trees]
    weighed = vcjax.merge(flat, merging.fisher(), statistics=[{"a/b": x["a/b"] ** 2} for x in flat])
    again = [{"a%2Fb": x["a/b"] ** 2} for x in flat]
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: (a == b).all(),
            *(weighed, vcjax.merge(flat, merging.fisher(), statistics=again)),
        )
    )
    more = [{"a%2Fb": x["a/b"] ** 2, "elsewhere": np.ones(2)} for x in flat]
    np.testing.assert_array_equal(
        vcjax.merge(flat, merging.fisher(), statistics=more)["a/b"], weighed["a/b"]
    )
    with pytest.raises(errors.MergeError, match="speak of none of its leaves, but of 'l%2Fvalue'"):
        vcjax.merge(flat, merging.fisher(), statistics=[{"l/value": np.ones(SHAPE)}] * 2)


def test_a_merge_of_states_may_be_jitted_and_keeps_their_types() -> None:
    states = [nnx.state(nnx.Linear(3, 3, rngs=nnx.Rngs(seed))) for seed in range(2)]
    base = jax.tree.map(np.zeros_like, states[0])
    method = merging.dare_linear(0.5)
    merged = jax.jit(lambda models: vcjax.merge(models, method, base=base, key=1))(states)
    assert type(merged["kernel"]) is nnx.Param
    plain = vcjax.merge(states, method, base=base, key=1)
    assert jax.tree.structure(merged) == jax.tree.structure(states[0]) == jax.tree.structure(plain)
    np.testing.assert_allclose(merged["kernel"][...], plain["kernel"][...], rtol=1e-6)


def test_coefficients_per_leaf_are_learned_under_the_same_paths() -> None:
    trees = [{"h[0]": np.float32(1.0), "a/b": np.float32(2.0)}] * 2
    found = merging.optimise(
        *(merging.linear(False), {"weights": 0.5}),
        *(lambda t: (t["h[0]"] - 2) ** 2 + t["a/b"] ** 2, trees),
        per="leaf",
        steps=3,
    )
    assert list(found.coefficients["weights"]) == ["a%2Fb", "h[0]"]
    merged = vcjax.merge(trees, found.method, weights=found.weights)
    assert float(merged["h[0]"]) > 1.0 > float(merged["a/b"]) / 2


def test_permutations_name_leaves_by_the_same_paths() -> None:
    model = nnx.state(nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu))
    one = {"a/b": np.ones((3, 4), np.float32), "out": np.ones((4, 2), np.float32)}
    spec = merging.permutation_spec(
        lambda t, x: jax.numpy.tanh(x @ t["a/b"]) @ t["out"], one, np.zeros((1, 3), np.float32)
    )
    assert set(spec.axes) == {"a%2Fb", "out"}
    assert merging.permute(one, spec, {"a%2Fb:1": [1, 0, 3, 2]})["a/b"].shape == (3, 4)
    named = merging.PermutationSpec.of(model, {"layers/0/kernel": (None, "h")})
    assert named.sizes == {"h": 4}
