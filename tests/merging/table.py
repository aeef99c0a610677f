"""One table of all merge methods, and the small models to try them on."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import merging


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
        whole: its thresholds range over all leaves.
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
    whole: bool = False

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
    Row("ties_whole", whole=True, coefficient=("scale", 0.7), base=True, equal={"density": 1.0}),
    Row(
        "localize_and_stitch",
        whole=True,
        arguments={"density": 0.4},
        coefficient=("scale", 0.7),
        base=True,
        equal={"density": 1.0},
    ),
    Row(
        "pcb",
        whole=True,
        arguments={"density": 0.5},
        coefficient=("scale", 0.7),
        base=True,
        equal=None,
    ),
    Row("adamerging", coefficient=("coefficients", 0.3), base=True, equal=None),
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


RANKS = ((), (8,), (2, 3, 4))


DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def cases(
    often: Callable[[int, Row], Iterable[Any]], all_of: Callable[[int, Row], Iterable[Any]]
) -> Any:
    """Parametrises by row and case: `often` in every run, the rest of `all_of` as slow.

    Every case of every row compiles a program of its own, and that is what takes the time.
    """
    found = []
    for i, row in enumerate(TABLE):
        now = list(often(i, row))
        for case in all_of(i, row):
            marks = [] if case in now else [pytest.mark.slow]
            parts = case if isinstance(case, tuple) and len(case) == 2 else (case,)
            name = "-".join(getattr(part, "__name__", str(part)).replace(" ", "") for part in parts)
            found.append(pytest.param(row, case, marks=marks, id=f"{row.name}-{name}"))
    return pytest.mark.parametrize(("row", "case"), found)


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


@functools.cache
def plain(name: str) -> Any:
    """The merge of a few float32 models, which several laws compare with."""
    row = next(row for row in TABLE if row.name == name)
    return merging.merge(models(row.few), row.method(), **row.inputs())


def close(a: Any, b: Any, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
