"""The laws that every merge method obeys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vcjax import errors, merging

from .table import DTYPES, RANKS, ROWS, TABLE, Row, cases, close, models, plain, tree


def test_the_table_names_every_method() -> None:
    assert sorted(row.name for row in TABLE) == sorted(set(merging.methods()) - {"keep"})


@cases(lambda i, row: DTYPES[1:2] if i % 4 == 0 else (), lambda i, row: DTYPES[1:])
def test_low_precision(row: Row, case: Any) -> None:
    """Merging bfloat16 and float16 is merging their values in float32, rounded once."""
    given, inputs = models(row.few, case), row.inputs()
    if row.base:
        inputs["base"] = tree(99, case)
    out = merging.merge(given, row.method(), **inputs)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), given)
    if row.base:
        inputs["base"] = jax.tree.map(lambda x: x.astype(jnp.float32), inputs["base"])
    full = merging.merge(wide, row.method(), **inputs)
    assert all(x.dtype == case for x in jax.tree.leaves(out))
    close(out, full, rtol=float(jnp.finfo(case).eps), atol=1e-7)


@cases(
    lambda i, row: [(RANKS[i % 3], DTYPES[(i // 3 + i) % 3])],
    lambda i, row: [(shape, DTYPES[(i // 3 + j) % 3]) for j, shape in enumerate(RANKS)],
)
def test_every_rank_and_dtype(row: Row, case: tuple[tuple[int, ...], Any]) -> None:
    shape, dtype = case
    given = [tree(seed, dtype, shape) for seed in range(row.few)]
    out = merging.merge(given, row.method(), **row.inputs(shape=shape))
    assert jax.tree.structure(out) == jax.tree.structure(given[0])
    for x in jax.tree.leaves(out):
        assert (x.shape, x.dtype) == (shape, dtype)
        assert bool(jnp.isfinite(x).all())


@cases(lambda i, row: row.models[i % 2 : 1], lambda i, row: row.models)
def test_every_number_of_models(row: Row, case: int) -> None:
    out = merging.merge(models(case), row.method(), **row.inputs(case))
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(out))


@cases(
    lambda i, row: [row.few],
    lambda i, row: [] if row.equal is None else sorted({*row.models[:3], row.few}),
)
def test_equal_models_give_the_model(row: Row, case: int) -> None:
    """For methods that any choice of parameters makes idempotent."""
    assert row.equal is not None
    out = merging.merge([tree(5)] * case, row.method(**row.equal), **row.inputs(case))
    close(out, tree(5))


@ROWS
def test_order_of_models(row: Row) -> None:
    inputs = row.inputs()
    if row.statistics:
        inputs["statistics"] = inputs["statistics"][::-1]
    backward = merging.merge(models(row.few)[::-1], row.method(), **inputs)
    if row.symmetric:
        close(plain(row.name), backward, atol=2e-5 if row.spectral else 2e-6)
    else:
        with pytest.raises(AssertionError):
            close(plain(row.name), backward)


@ROWS
def test_weights(row: Row) -> None:
    n = row.few
    if not row.weighted:
        with pytest.raises(errors.MergeError, match="no weights"):
            merging.merge(models(n), row.method(), weights=[1.0] * n, **row.inputs())
        return
    even = plain(row.name)
    ones = merging.merge(models(n), row.method(), weights=[1.0] * n, **row.inputs())
    close(even, ones, rtol=0, atol=0)
    ramp = [float(i + 1) for i in range(n)]
    uneven = merging.merge(models(n), row.method(), weights=ramp, **row.inputs())
    assert jnp.abs(uneven["layer"]["kernel"] - even["layer"]["kernel"]).max() > 1e-3
    by_path = merging.merge(models(n), row.method(), weights={"layer": ramp}, **row.inputs())
    close(by_path, {"layer": uneven["layer"], "head": even["head"]}, 1e-6)


@cases(
    lambda i, row: [row.few] if row.name in {"linear", "dare_linear", "fisher", "mats"} else [],
    lambda i, row: [row.few],
)
def test_jit_changes_nothing(row: Row, case: int) -> None:
    inputs = row.inputs()
    base, key, numbers = (inputs.get(name) for name in ("base", "key", "statistics"))
    weights = jnp.ones(case) if row.weighted else None
    jitted = jax.jit(lambda t, b, w, s: merging.merge(t, row.method(), b, w, s, key))
    out = jitted(models(case), base, weights, numbers)
    close(plain(row.name), out, rtol=1e-6, atol=1e-6)


GRADIENTS = {
    *("average", "task_arithmetic", "ties", "slerp", "multislerp", "della", "sce", "ram_plus"),
    *("nearswap", "consensus", "emr", "fisher", "regmean", "tsv", "iso_c", "model_stock"),
}
"""Rows whose gradients every run takes: one of each kind of step."""


@cases(lambda i, row: [row.few] if row.name in GRADIENTS else [], lambda i, row: [row.few])
def test_vmap_and_grad(row: Row, case: int) -> None:
    """Of the coefficient (of a factor of the first model if there is none), models and weights.

    vmap gives what single calls give, the slope is that of finite differences, and
    gradients are finite also at zero leaves and at equal models, where norms and
    angles vanish. One compiled function serves all of it.
    """
    n = case
    name, value = row.coefficient or (None, 1.0)

    def part(model: Any) -> Any:
        return model if row.whole else {"layer": model["layer"]}

    inputs = row.inputs()
    if row.base:
        inputs["base"] = part(inputs["base"])

    def merged(c: Any, trees: Any, weights: Any) -> Any:
        more = inputs if weights is None else inputs | {"weights": weights}
        if name is not None:
            return merging.merge(trees, row.method(**{name: c}), **more)
        return merging.merge(
            [jax.tree.map(lambda x: c * x, trees[0]), *trees[1:]], row.method(), **more
        )

    def loss(c: Any, trees: Any, weights: Any) -> Any:
        out = merged(c, trees, weights)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(out)), out

    wanted = (0, 1, 2) if row.weighted else (0, 1)
    slopes = jax.value_and_grad(loss, argnums=wanted, has_aux=True)
    many = jax.jit(jax.vmap(slopes, in_axes=(0, None, None)))
    step = 1e-2
    points = jnp.array([0.9, value, value + step, value - step])
    weights = jnp.ones(n) if row.weighted else None
    given = [part(model) for model in models(n)]
    (losses, out), grads = many(points, given, weights)
    close(jax.tree.map(lambda x: x[1], out), merged(value, given, weights), 1e-5, 1e-6)
    if row.differentiable:
        difference = (losses[2] - losses[3]) / (2 * step)
        np.testing.assert_allclose(grads[0][1], difference, rtol=2e-2)
    zero, base = part(jax.tree.map(jnp.zeros_like, tree(0))), part(tree(99))
    results = [grads]
    if not row.spectral:
        results += [many(points, [special] * n, weights)[1] for special in (zero, base)]
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(results))


@ROWS
def test_nan_stays(row: Row) -> None:
    n = row.few
    given = models(n)
    given[0]["layer"]["kernel"] = given[0]["layer"]["kernel"].at[2, 3].set(jnp.nan)
    out = merging.merge(given, row.method(), **row.inputs())
    bad = np.isnan(np.asarray(out["layer"]["kernel"]))
    assert bad[2, 3]
    if row.nan == "element":
        assert bad.sum() == 1
    assert not np.isnan(np.asarray(out["head"])).any()


def spread(model: Any, axis: AxisType) -> Any:
    """A model with its leaves spread over all devices along their last axis."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (axis,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    return jax.tree.map(lambda x: jax.device_put(x, sharding), model)


SHARDED = {
    AxisType.Auto: ("sce", "dare_ties", "regmean"),
    AxisType.Explicit: ("ties", "karcher"),
}


EXPLICIT = {"average", "ties", "dare_ties", "karcher", "ties_whole", "regmean"}


@cases(
    lambda i, row: [axis for axis, names in SHARDED.items() if row.name in names],
    lambda i, row: [AxisType.Auto, *([AxisType.Explicit] if row.name in EXPLICIT else [])],
)
def test_sharded_inputs(row: Row, case: AxisType) -> None:
    """Leaves spread over all devices merge to the same numbers."""
    inputs = row.inputs()
    if row.base:
        inputs["base"] = spread(inputs["base"], case)
    placed = [spread(model, case) for model in models(row.few)]
    out = merging.merge(placed, row.method(), **inputs)
    close(out, plain(row.name), 1e-4 if row.spectral else 1e-5, 2e-6)


@ROWS
def test_a_base_is_asked_for(row: Row) -> None:
    if row.base:
        with pytest.raises(errors.MergeError, match="needs the base"):
            merging.merge(models(row.few), row.method(), key=0)
    if row.key:
        with pytest.raises(errors.MergeError, match="random"):
            merging.merge(models(row.few), row.method(), base=tree(99))


@ROWS
def test_recorded_and_made_again(row: Row) -> None:
    config = merging.to_config(row.method())
    again = merging.from_config(**config)
    assert merging.to_config(again) == config
    out = merging.merge(models(row.few), again, **row.inputs())
    close(out, plain(row.name), rtol=0, atol=0)


@ROWS
def test_fold_is_merge(row: Row) -> None:
    n = row.few
    inputs = row.inputs()
    inputs.pop("statistics", None)
    if not row.method().foldable:
        with pytest.raises(errors.MergeError, match="all models at once"):
            merging.fold(models(n), row.method(), **inputs)
        return
    ramp = [0.5 + i for i in range(n)] if row.weighted else None
    whole = merging.merge(models(n), row.method(), weights=ramp, **inputs)
    folded = merging.fold(iter(models(n)), row.method(), weights=ramp, **inputs)
    close(whole, folded, 1e-5, 1e-6)
