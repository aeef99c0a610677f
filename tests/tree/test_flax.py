"""Flax and Optax: Linen params, nnx States, Modules and Optimizers, TrainState."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.core import FrozenDict, freeze, unfreeze
from flax.training.train_state import TrainState

from vcjax import errors, tree

from .roots import node_of

pytestmark = pytest.mark.smoke


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, raw_array: bool):
        self.linear = nnx.Linear(2, 3, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.tied = self.linear
        self.noise = rngs
        # nnx.eval_shape forgets arrays that are not in a Variable.
        self.table = jnp.arange(3) if raw_array else nnx.Cache(jnp.arange(3))
        self.activation = jax.nn.relu

    def __call__(self, x):
        x = self.activation(self.norm(self.linear(x)))
        for block in self.blocks:
            x = block(x)
        return self.dropout(x)


class Scale(nnx.Variable):
    def __init__(self, value, must_be_given):
        super().__init__(value, note=must_be_given)


class Mlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.BatchNorm(use_running_average=False)(linen.Dense(3)(x)))


def net(seed: int = 0, raw_array: bool = False) -> Net:
    return Net(nnx.Rngs(seed, dropout=seed + 1), raw_array)


def copied(root: Any) -> Any:
    """As storage gives it back: the same tree with fresh host arrays."""

    def copy(_: str, leaf: tree.Leaf) -> tree.Leaf:
        return leaf if leaf.spec.is_value else tree.Leaf(leaf.spec, tree.canonical(leaf).copy())

    return tree.map_leaves(copy, root)


def assert_same(a: object, b: object) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("raw_array", [True, False])
def test_the_paths_of_a_state_are_those_of_jax_without_value(raw_array):
    state = nnx.state(net(0, raw_array))
    expected = [
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ]
    assert list(tree.leaf_dict(tree.flatten(state))) == expected
    assert {"linear/kernel", "blocks/1/bias", "noise/default/key", "table"} <= set(expected)


def test_a_state_comes_back_with_the_types_of_its_variables():
    state = nnx.state(net(raw_array=True))
    root = node_of(state)
    assert root.kind == "nnx_state"
    leaves = tree.leaf_dict(root)
    assert leaves["linear/kernel"].spec.variable.endswith(":Param")
    assert leaves["norm/mean"].spec.variable.endswith(":BatchStat")
    assert leaves["table"].spec.variable is None
    back = tree.unflatten(copied(root))
    assert isinstance(back, nnx.State)
    assert isinstance(back["linear"]["kernel"], nnx.Param)
    assert isinstance(back["noise"]["default"]["count"], nnx.RngCount)
    assert_same(nnx.to_pure_dict(back), nnx.to_pure_dict(state))
    twin = net(5, raw_array=True)
    nnx.update(twin, back)
    assert_same(nnx.to_pure_dict(nnx.state(twin)), nnx.to_pure_dict(state))


@pytest.mark.parametrize("like", ["state", "abstract state"])
def test_a_state_restores_into_a_state(like):
    state = nnx.state(net())
    into = nnx.state(net(9)) if like == "state" else nnx.state(nnx.eval_shape(lambda: net(9)))
    assert_same(tree.unflatten_like(copied(tree.flatten(state)), into), state)


@pytest.mark.parametrize("like", ["module", "abstract module"])
def test_a_module_restores_into_a_new_module(like):
    source, target = net(), net(9) if like == "module" else nnx.eval_shape(lambda: net(9))
    before = jax.tree.leaves(nnx.state(target))
    back = tree.unflatten_like(copied(tree.flatten(source)), target)
    assert type(back) is Net
    assert back is not target
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(target)), strict=True))
    assert back.tied is back.linear
    assert_same(nnx.state(back), nnx.state(source))
    x = jnp.ones((4, 2))
    np.testing.assert_array_equal(back(x), source(x))


def test_a_module_and_its_state_are_stored_alike():
    module = net()
    a, b = tree.flatten(module), tree.flatten(nnx.state(module))
    specs = [tree.map_leaves(lambda _, leaf: leaf.spec, root) for root in (a, b)]
    assert specs[0] == specs[1]


def test_modules_may_be_anywhere_in_a_tree():
    value = {"models": [net(0), net(1)], "step": 3, "var": nnx.Param(jnp.ones(2))}
    root = tree.flatten(value)
    assert {"models/0/linear/kernel", "step", "var"} <= set(tree.leaf_dict(root))
    like = {"models": [net(7), net(8)], "step": 0, "var": value["var"]}
    back = tree.unflatten_like(copied(root), like)
    assert back["step"] == 3
    for i in range(2):
        assert_same(nnx.state(back["models"][i]), nnx.state(value["models"][i]))
    assert isinstance(tree.unflatten(root)["var"], nnx.Param)


def test_an_nnx_optimizer_resumes_where_it_was():
    def step(model, optimizer):
        grads = nnx.grad(lambda m: (m(jnp.ones((2, 2))) ** 2).sum())(model)
        optimizer.update(model, grads)

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    step(model, optimizer)
    stored = copied(tree.flatten({"model": model, "optimizer": optimizer}))
    assert "optimizer/opt_state/0/mu/kernel" in tree.leaf_dict(stored)
    fresh = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
    like = {"model": fresh, "optimizer": nnx.Optimizer(fresh, optax.adam(0.1), wrt=nnx.Param)}
    back = tree.unflatten_like(stored, like)
    for m, o in ((model, optimizer), (back["model"], back["optimizer"])):
        step(m, o)
    assert_same(nnx.state(back["model"]), nnx.state(model))
    assert_same(nnx.state(back["optimizer"]), nnx.state(optimizer))


def test_variables_that_hold_trees_none_or_nothing_known():
    class Local(nnx.Variable):
        pass

    state = nnx.State(
        {
            "tree": nnx.Variable({"a": jnp.ones(2), "b": [1]}),
            "none": nnx.Param(None),
            "local": Local(jnp.zeros(1)),
            "scale": Scale(jnp.zeros(1), "x"),
        }
    )
    root = tree.flatten(state)
    assert list(tree.leaf_dict(root)) == ["local", "scale", "tree/value/a", "tree/value/b/0"]
    back = tree.unflatten(root)
    assert back["tree"].get_value()["b"] == [1]
    assert back["none"].get_value() is None
    assert type(back["local"]) is nnx.Variable
    assert type(back["scale"]) is Scale
    like = tree.unflatten_like(root, state)
    assert jax.tree.structure(like) == jax.tree.structure(state)
    assert like["scale"].note == "x"


def test_variables_that_hold_references():
    variable = nnx.Param(jnp.ones(2), ref=True)
    root = tree.flatten({"v": variable})
    assert tree.leaf_dict(root)["v"].spec.dtype == "float32"
    back = tree.unflatten_like(root, {"v": nnx.Param(jnp.zeros(2), ref=True)})["v"]
    np.testing.assert_array_equal(back[...], np.ones(2))
    assert isinstance(back.get_raw_value(), jax.Ref)


def test_hooks_do_not_run():
    def hook(variable, value):
        raise RuntimeError

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable hooks are deprecated")  # from Flax 0.12.7 on
        variable = nnx.Param(jnp.ones(2), on_get_value=hook, on_set_value=hook)
    root = tree.flatten(nnx.State({"a": variable}))
    back = tree.unflatten_like(root, nnx.State({"a": variable}))
    assert back["a"].get_metadata()["on_get_value"] is hook


def test_linen_variables_come_back_and_frozen_and_plain_dicts_are_interchangeable():
    variables = Mlp().init(jax.random.key(0), jnp.ones((1, 2)))
    root = copied(tree.flatten(variables))
    assert "params/Dense_0/kernel" in tree.leaf_dict(root)
    assert_same(tree.unflatten(root), variables)
    frozen = freeze(variables)
    back = tree.unflatten_like(root, frozen)
    assert isinstance(back, FrozenDict)
    assert_same(back, frozen)
    assert_same(tree.unflatten_like(copied(tree.flatten(frozen)), unfreeze(frozen)), variables)
    assert_same(tree.unflatten(copied(tree.flatten(frozen))), frozen)


def masked_chain() -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    )


TRANSFORMS = {
    "adam": lambda: optax.adam(1e-3),
    "masked chain": masked_chain,
    "accumulate": lambda: optax.MultiSteps(optax.adamw(1e-3), 2),
    "partition": lambda: optax.partition(
        {"a": optax.adam(1e-3), "b": optax.set_to_zero()},
        lambda p: jax.tree_util.tree_map_with_path(
            lambda path, _: "a" if "kernel" in str(path) else "b", p
        ),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_train_state_resumes_where_it_was(name):
    def fresh(seed: int) -> TrainState:
        params = linen.Dense(2).init(jax.random.key(seed), jnp.ones((1, 3)))
        return TrainState.create(apply_fn=Mlp().apply, params=params, tx=transform)

    transform = TRANSFORMS[name]()
    state = fresh(0)
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    root = copied(tree.flatten(state))
    plain = tree.unflatten(root)
    assert set(plain) == {"step", "params", "opt_state"}
    assert plain["step"] == 1
    assert_same(plain["opt_state"], state.opt_state)
    back = tree.unflatten_like(root, fresh(1))
    assert back.tx is transform
    assert back.step == 1
    again = [s.apply_gradients(grads=jax.tree.map(jnp.ones_like, s.params)) for s in (state, back)]
    assert jax.tree.structure(again[0].params) == jax.tree.structure(again[1].params)
    for x, y in zip(jax.tree.leaves(again[0]), jax.tree.leaves(again[1]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_abstract_trees_of_states_and_modules_serve_as_like():
    module = net(raw_array=True)
    root = copied(tree.flatten(module))
    shape = tree.abstract(module)
    assert isinstance(shape, Net)
    assert isinstance(shape.linear.kernel.get_raw_value(), jax.ShapeDtypeStruct)
    assert_same(nnx.state(tree.unflatten_like(root, shape)), nnx.state(module))
    with pytest.raises(errors.UnsupportedLeafError, match="has no data"):
        tree.flatten(shape)


def test_boxed_linen_params_are_custom_nodes():
    init = linen.with_partitioning(linen.initializers.ones, (None, "model"))
    variables = linen.Dense(2, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 3)))
    root = copied(tree.flatten(variables))
    assert "params/kernel/value" in tree.leaf_dict(root)
    assert_same(tree.unflatten_like(root, variables), variables)
    assert set(tree.unflatten(root)["params"]["kernel"]) == {"value"}
