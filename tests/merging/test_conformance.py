"""One table of all merge methods, and the laws that every row obeys."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vcjax import errors, merging


@dataclass(frozen=True)
class Row:
    """A method and which laws hold for it.

    Attributes:
        name: of the recipe.
        models: numbers of models to try.
        coefficient: a parameter that vmap and grad go through, and its value.
        symmetric: the order of the models does not matter.
        equal: arguments with which N equal models give the model (None: no such).
        base, key: whether they are needed.
        statistics: their kind, if they are needed.
        spectral: it takes an SVD, which has no gradient at equal singular values
            (of zero matrices, say) and amplifies rounding errors.
        weighted: whether it takes weights.
        nan: "element" (a NaN stays where it is) or "leaf" (it spreads over the leaf).
    """

    name: str
    models: tuple[int, ...] = (1, 2, 3, 8)
    arguments: dict[str, Any] = field(default_factory=dict)
    coefficient: tuple[str, float] | None = None
    differentiable: bool = True
    symmetric: bool = True
    equal: dict[str, Any] | None = field(default_factory=dict)
    base: bool = False
    key: bool = False
    weighted: bool = True
    nan: str = "element"
    statistics: str | None = None
    spectral: bool = False

    def method(self, **changes: Any) -> merging.MergeMethod:
        return getattr(merging, self.name)(**(self.arguments | changes))

    @property
    def few(self) -> int:
        return next((n for n in self.models if n > 2), self.models[-1])

    def inputs(self, n: int | None = None, shape: tuple[int, ...] = (6, 8)) -> dict[str, Any]:
        given: dict[str, Any] = {"base": tree(99, shape=shape)} if self.base else {}
        if self.statistics == "fisher":
            squares = [jax.tree.map(jnp.square, tree(i, shape=shape)) for i in range(n or self.few)]
            given["statistics"] = squares
        if self.statistics == "gram":
            given["statistics"] = [grams(i, shape) for i in range(n or self.few)]
        return given | ({"key": 7} if self.key else {})


TABLE = [
    Row("average", models=(1, 2, 5, 32)),
    Row("linear", models=(1, 2, 5, 32)),
    Row("passthrough", coefficient=("scale", 0.5), symmetric=False, weighted=False),
    Row("task_arithmetic", coefficient=("scale", 0.3), base=True, equal={"normalize": True}),
    Row(
        "ties", coefficient=("scale", 0.7), base=True, equal={"density": 1.0}, models=(1, 2, 3, 32)
    ),
    Row(
        "dare_linear",
        coefficient=("density", 0.6),
        differentiable=False,
        symmetric=False,
        equal={"density": 1.0, "normalize": True},
        base=True,
        key=True,
    ),
    Row(
        "dare_ties",
        coefficient=("scale", 0.6),
        symmetric=False,
        equal={"density": 1.0, "normalize": True},
        base=True,
        key=True,
    ),
    Row(
        "slerp",
        models=(2,),
        arguments={"t": 0.4},
        coefficient=("t", 0.3),
        symmetric=False,
        weighted=False,
        nan="leaf",
    ),
    Row("nuslerp", models=(2,), nan="leaf"),
    Row("multislerp", nan="leaf"),
    Row("karcher", nan="leaf"),
    Row(
        "breadcrumbs",
        arguments={"density": 0.5, "gamma": 0.1},
        coefficient=("density", 0.5),
        differentiable=False,
        base=True,
        equal={"density": 1.0, "gamma": 0.0, "normalize": True},
    ),
    Row(
        "breadcrumbs_ties",
        arguments={"density": 0.5, "gamma": 0.1},
        coefficient=("scale", 0.5),
        base=True,
        equal={"density": 1.0, "gamma": 0.0, "normalize": True},
    ),
    Row(
        "della",
        coefficient=("scale", 0.5),
        symmetric=False,
        base=True,
        key=True,
        equal={"density": 1.0},
    ),
    Row(
        "della_linear",
        coefficient=("scale", 0.5),
        symmetric=False,
        base=True,
        key=True,
        equal={"density": 1.0, "normalize": True},
    ),
    Row(
        "sce",
        nan="leaf",
        coefficient=("scale", 0.5),
        base=True,
        weighted=False,
        arguments={"select_topk": 0.6},
        equal={"select_topk": 1.0},
    ),
    Row("ram", base=True, weighted=False),
    Row("ram_plus", coefficient=("r", 0.5), base=True, weighted=False, arguments={"alpha": 5.0}),
    Row("nearswap", models=(2,), coefficient=("t", 0.3), symmetric=False, weighted=False),
    Row("arcee_fusion", models=(2,), symmetric=False, weighted=False, nan="leaf"),
    Row("ties_whole", coefficient=("scale", 0.7), base=True, equal={"density": 1.0}),
    Row(
        "localize_and_stitch",
        arguments={"density": 0.4},
        coefficient=("scale", 0.7),
        base=True,
        equal={"density": 1.0},
    ),
    Row("consensus", coefficient=("scale", 0.7), base=True, equal=None),
    Row("emr", coefficient=("scale", 0.7), base=True),
    Row("fisher", statistics="fisher"),
    Row("regmean", statistics="gram", coefficient=("shrink", 0.8), nan="leaf"),
    Row("mats", statistics="gram", coefficient=("shrink", 0.8), nan="leaf"),
    Row("tsv", spectral=True, base=True, coefficient=("scale", 0.7), equal=None, nan="leaf"),
    Row("iso_c", base=True, coefficient=("scale", 0.7), equal=None, nan="leaf"),
    Row(
        "iso_cts",
        spectral=True,
        base=True,
        coefficient=("scale", 0.7),
        equal=None,
        nan="leaf",
        models=(1, 2, 3),
    ),
    Row(
        "knots",
        spectral=True,
        base=True,
        coefficient=("scale", 0.7),
        equal={"density": 1.0},
        nan="leaf",
    ),
    Row("wudi", base=True, coefficient=("scale", 0.7), equal=None, nan="leaf"),
    Row("model_stock", models=(2, 3, 8), base=True, weighted=False, nan="leaf"),
]
ROWS = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def tree(seed: int, dtype: Any = jnp.float32, shape: tuple[int, ...] = (6, 8)) -> dict[str, Any]:
    """A small model: two leaves of one shape, so that each test compiles once."""
    random = np.random.default_rng(seed)
    return {
        "layer": {"kernel": jnp.asarray(random.normal(size=shape), dtype)},
        "head": jnp.asarray(random.normal(size=shape), dtype),
    }


def grams(seed: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Gram matrices of random inputs, by leaf path."""
    n = int(np.prod(shape[:-1]))
    x = np.random.default_rng(seed).normal(size=(50, n))
    gram = jnp.asarray(x.T @ x, jnp.float32)
    return {"layer/kernel": gram, "head": gram + jnp.eye(n)} if len(shape) > 1 else {}


def models(n: int, dtype: Any = jnp.float32) -> list[dict[str, Any]]:
    return [tree(seed, dtype) for seed in range(n)]


def close(a: Any, b: Any, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def test_the_table_names_every_method() -> None:
    assert sorted(row.name for row in TABLE) == sorted(set(merging.methods()) - {"keep"})


@ROWS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shape_and_dtype(row: Row, dtype: Any) -> None:
    """Every dtype gives leaves like the first model's, close to the float32 merge."""
    given = models(row.few, dtype)
    inputs = row.inputs()
    if row.base:
        inputs["base"] = tree(99, dtype)
    out = merging.merge(given, row.method(), **inputs)
    assert jax.tree.structure(out) == jax.tree.structure(given[0])
    for x, y in zip(jax.tree.leaves(out), jax.tree.leaves(given[0]), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (given, inputs.pop("base", None)))
    full = merging.merge(wide[0], row.method(), wide[1], **inputs)
    eps = float(jnp.finfo(dtype).eps)
    close(out, full, rtol=max(eps, 1e-6), atol=1e-7)


@ROWS
@pytest.mark.parametrize("shape", [(), (8,), (2, 3, 4)])
def test_every_rank(row: Row, shape: tuple[int, ...]) -> None:
    given = [tree(seed, shape=shape) for seed in range(row.few)]
    inputs = row.inputs(shape=shape)
    out = merging.merge(given, row.method(), **inputs)
    assert out["head"].shape == shape
    assert bool(jnp.isfinite(out["head"]).all())


@ROWS
def test_every_number_of_models(row: Row) -> None:
    for n in row.models:
        out = merging.merge(models(n), row.method(), **row.inputs(n))
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(out))


@ROWS
def test_equal_models_give_the_model(row: Row) -> None:
    if row.equal is None:
        pytest.skip("no choice of parameters makes this method idempotent")
    for n in row.models[:3]:
        out = merging.merge([tree(5)] * n, row.method(**row.equal), **row.inputs(n))
        close(out, tree(5))


@ROWS
def test_order_of_models(row: Row) -> None:
    n = row.few
    forward = merging.merge(models(n), row.method(), **row.inputs())
    inputs = row.inputs()
    if row.statistics:
        inputs["statistics"] = inputs["statistics"][::-1]
    backward = merging.merge(models(n)[::-1], row.method(), **inputs)
    if row.symmetric:
        close(forward, backward, atol=2e-5 if row.spectral else 2e-6)
    else:
        with pytest.raises(AssertionError):
            close(forward, backward)


@ROWS
def test_weights(row: Row) -> None:
    n = row.few
    if not row.weighted:
        with pytest.raises(errors.MergeError, match="no weights"):
            merging.merge(models(n), row.method(), weights=[1.0] * n, **row.inputs())
        return
    plain = merging.merge(models(n), row.method(), **row.inputs())
    ones = merging.merge(models(n), row.method(), weights=[1.0] * n, **row.inputs())
    close(plain, ones, rtol=0, atol=0)
    ramp = [float(i + 1) for i in range(n)]
    uneven = merging.merge(models(n), row.method(), weights=ramp, **row.inputs())
    assert jnp.abs(uneven["layer"]["kernel"] - plain["layer"]["kernel"]).max() > 1e-3
    by_path = merging.merge(models(n), row.method(), weights={"layer": ramp}, **row.inputs())
    close(by_path, {"layer": uneven["layer"], "head": plain["head"]}, 1e-6)


@ROWS
def test_jit_changes_nothing(row: Row) -> None:
    n = row.few
    inputs = row.inputs()
    base, key, numbers = (inputs.get(name) for name in ("base", "key", "statistics"))
    weights = jnp.ones(n) if row.weighted else None
    plain = merging.merge(models(n), row.method(), base, weights, numbers, key)
    jitted = jax.jit(lambda t, b, w, s: merging.merge(t, row.method(), b, w, s, key))
    close(plain, jitted(models(n), base, weights, numbers), rtol=1e-6, atol=1e-6)


@ROWS
def test_vmap_and_grad(row: Row) -> None:
    if row.coefficient is None:
        pytest.skip("no continuous coefficient besides the weights")
    name, value = row.coefficient
    given, inputs = models(row.few), row.inputs()

    def merged(c: Any) -> Any:
        return merging.merge(given, row.method(**{name: c}), **inputs)

    many = jax.vmap(merged)(jnp.array([value, 0.9]))
    close(jax.tree.map(lambda x: x[0], many), merged(value), 1e-5, 1e-6)
    close(jax.tree.map(lambda x: x[1], many), merged(0.9), 1e-5, 1e-6)
    if not row.differentiable:
        return

    def loss(c: Any) -> Any:
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(merged(c)))

    slope = jax.grad(loss)(value)
    step = 1e-2
    difference = (loss(value + step) - loss(value - step)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=2e-2)


@ROWS
def test_gradients_are_finite(row: Row) -> None:
    """Also at zero leaves and at equal models, where norms and angles vanish."""
    n = row.few
    inputs = row.inputs()
    zero = jax.tree.map(jnp.zeros_like, tree(0))

    def loss(trees: Any, weights: Any) -> Any:
        out = merging.merge(trees, row.method(), weights=weights, **inputs)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(out))

    weights = jnp.ones(n) if row.weighted else None
    special = [] if row.spectral else [[zero] * n, [tree(99)] * n]
    for given in (models(n), *special):
        grads = jax.grad(loss, argnums=(0, 1) if row.weighted else 0)(given, weights)
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


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


def check_sharded(row: Row, axis: AxisType) -> None:
    inputs = row.inputs()
    plain = merging.merge(models(row.few), row.method(), **inputs)
    if row.base:
        inputs["base"] = spread(inputs["base"], axis)
    placed = [spread(model, axis) for model in models(row.few)]
    close(
        merging.merge(placed, row.method(), **inputs), plain, 1e-4 if row.spectral else 1e-5, 2e-6
    )


@ROWS
def test_sharded_inputs(row: Row) -> None:
    """Leaves spread over all devices merge to the same numbers."""
    check_sharded(row, AxisType.Auto)


@pytest.mark.parametrize(
    "name", ["average", "ties", "dare_ties", "karcher", "ties_whole", "regmean"]
)
def test_explicitly_sharded_inputs(name: str) -> None:
    check_sharded(next(row for row in TABLE if row.name == name), AxisType.Explicit)


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
    n = row.few
    first = merging.merge(models(n), row.method(), **row.inputs())
    close(merging.merge(models(n), again, **row.inputs()), first, rtol=0, atol=0)


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
