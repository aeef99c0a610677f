"""Many merges in one compiled call: coefficients are mapped over, models are not copied."""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from vcjax import errors
from vcjax.merging import plugins
from vcjax.merging.in_memory import merge
from vcjax.merging.inputs import RandomKey, Tree, Weights
from vcjax.merging.makers import METHODS
from vcjax.merging.method import MergeMethod
from vcjax.merging.shapes import Coefficient, Coefficients, Parameters

Make = Callable[..., MergeMethod] | MergeMethod
INPUTS = ("weights", "key")
"""What a grid may hold beside parameters of the method: arguments of `merge`."""

TRACED = (Coefficient, Coefficients, Any, inspect.Parameter.empty)
"""How recipes annotate what may be traced; what may not be is annotated by its type."""

NOT_FOUND = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        grid: `{name: values}`, one axis each.
        values: what `evaluate` gave, as NumPy arrays whose leading axes are the
            grid's, in its order.
    """

    grid: dict[str, list[Any]]
    values: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of values per axis of the grid."""
        return tuple(map(len, self.grid.values()))

    def points(self) -> list[dict[str, Any]]:
        """The coefficients of every merge, the last axis of the grid fastest."""
        return [dict(zip(self.grid, row, strict=True)) for row in itertools.product(*self._axes())]

    def best(self, metric: str | None = None, lowest: bool = False) -> dict[str, Any]:
        """The coefficients with the highest value (or lowest); NaN never wins.

        Args:
            metric: which entry, if `evaluate` gave a dict.
            lowest: take the lowest instead.

        Raises:
            MergeError: there is no such metric, or it is no number per merge.
        """
        several = isinstance(self.values, Mapping)
        known = ", ".join(map(repr, self.values)) if several else None
        if several != (metric is not None) or (several and metric not in self.values):
            raise errors.MergeError(
                f"metric={metric!r} is nothing that was evaluated",
                hint=f"one of {known}" if several else "leave metric= out",
            )
        column = np.asarray(self.values[metric] if several else self.values, float)
        if column.shape != self.shape:
            raise errors.MergeError(
                f"values of shape {list(column.shape)} for a grid of {list(self.shape)}",
                hint="evaluate must give one number per merge",
            )
        worst = math.inf if lowest else -math.inf
        ranked = np.where(np.isnan(column), worst, column).ravel()
        return self.points()[int(ranked.argmin() if lowest else ranked.argmax())]

    def _axes(self) -> list[list[Any]]:
        return list(self.grid.values())


def sweep(
    method: Make,
    grid: Mapping[str, Sequence[object]],
    evaluate: Callable[[Tree], PyTree],
    trees: Sequence[Tree],
    base: Tree = None,
    weights: Weights | None = None,
    statistics: Sequence[Tree] | None = None,
    key: RandomKey | None = None,
    *,
    dtype: DTypeLike | None = None,
    batch: int | None = 1,
) -> Sweep:
    """Merges with every combination of some coefficients, and evaluates every merge.

    All merges that differ in numbers alone are one compiled call, in which the
    models are shared: beside them, memory holds `batch` merged models and what
    evaluating them takes.

    Args:
        method: a recipe (`merging.ties`), any function of coefficients that gives a
            method, or a method whose parameters are changed (`merging.ties(density=0.3)`).
        grid: `{parameter: values}`; all combinations are tried. `weights` (values of
            `[N]` each) and `key` (ints: seeds) may be among the parameters. Parameters
            that decide the program (flags, names, iteration numbers) may too, and
            compile one program for each of their values.
        evaluate: of a merged tree: a number, or a tree of arrays such as
            `{"loss": …, "accuracy": …}`. It must be traceable, as under `jax.jit`.
        trees: as in `merge`, and so are the next four.
        base: see above.
        weights: see above.
        statistics: see above.
        key: see above.
        dtype: as in `merge`.
        batch: how many merges are computed at once, by `vmap`; None: all of them.

    Raises:
        MergeError: the grid is empty, or has a parameter that the method has not, or
            cannot take as a traced number.

    Example:
        >>> from vcjax import merging
        >>> base, a = {"w": 1.0}, {"w": 3.0}
        >>> grid = {"scale": [0.0, 0.5, 1.0]}
        >>> found = merging.sweep(
        ...     merging.task_arithmetic, grid, lambda tree: (tree["w"] - 2) ** 2, [a], base
        ... )
        >>> found.values.tolist(), found.best(lowest=True)
        ([1.0, 0.0, 1.0], {'scale': 0.5})
    """
    axes = {name: list(values) for name, values in grid.items()}
    if not axes or not all(axes.values()):
        raise errors.MergeError("the grid is empty", hint='give values, {"scale": [0.3, 0.5]}')
    fixed = [name for name in axes if is_fixed(method, name, axes[name])]
    moving = [name for name in axes if name not in fixed]
    rows = list(itertools.product(*(axes[name] for name in moving)))
    points = {name: stacked(name, [row[i] for row in rows]) for i, name in enumerate(moving)}
    arrays, rebuild = split_arrays((list(trees), base, statistics))

    def many(
        points: dict[str, jax.Array], arrays: list[jax.Array], settings: dict[str, PyTree]
    ) -> PyTree:
        models, ground, numbers = rebuild(arrays)

        def one(point: dict[str, jax.Array]) -> Any:
            given = {"weights": weights, "key": key} | settings | point
            parameters = {name: x for name, x in given.items() if name not in INPUTS}
            merged = merge(
                models,
                made(method, parameters),
                ground,
                given["weights"],
                numbers,
                as_seed(given["key"]),
                dtype=dtype,
            )
            return evaluate(merged)

        return mapped_over(one, points, len(rows), batch)

    parts = []
    for settings in itertools.product(*(axes[name] for name in fixed)):
        call = dict(zip(fixed, settings, strict=True))
        compiled = jax.jit(lambda points, arrays, call=call: many(points, arrays, call))
        try:
            parts.append(jax.device_get(compiled(points, arrays)))
        except NOT_FOUND as error:
            raise errors.MergeError(
                f"one of {', '.join(moving)} decides the program, and cannot be mapped over",
                hint="annotate it as int, float, bool or str in the function that makes the method",
            ) from error
    return Sweep(axes, gathered(parts, axes, fixed, moving))


def gathered(
    parts: list[PyTree], axes: Mapping[str, list[object]], fixed: list[str], moving: list[str]
) -> Any:
    """The results of all programs as arrays whose leading axes are the grid's, in order."""
    order = [*fixed, *moving]
    shape = [len(axes[name]) for name in order]
    back = [order.index(name) for name in axes]

    def gather(*columns: ArrayLike) -> np.ndarray:
        whole = np.stack([np.asarray(x) for x in columns])
        rest = whole.shape[2:] if moving else whole.shape[1:]
        whole = whole.reshape(*shape, *rest)
        return whole.transpose(*back, *range(len(back), whole.ndim))

    return jax.tree.map(gather, *parts)


def mapped_over(
    one: Callable[[PyTree], PyTree], points: PyTree, number: int, batch: int | None
) -> Any:
    """`one` of every point: `batch` of them at once."""
    if not points:
        return one({})
    if batch is None or batch >= number:
        return jax.vmap(one)(points)
    return lax.map(one, points, batch_size=None if batch == 1 else batch)


def made(method: Make, parameters: Parameters) -> MergeMethod:
    """The method with these parameters.

    Raises:
        MergeError: it has no such parameters.
    """
    if not isinstance(method, MergeMethod):
        make, given = method, dict(parameters)
    elif not parameters:
        return method
    elif (found := _recipe(method)) is not None:
        make, given = found, {**method.parameters, **parameters}
    else:
        raise errors.MergeError(
            f"{method.name} has no coefficients by name",
            hint="give a function of the coefficients that makes the method",
        )
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        name = getattr(make, "__name__", repr(make))
        raise errors.MergeError(
            f"{name}: {error}", hint=f"it takes {', '.join(inspect.signature(make).parameters)}"
        ) from error
    return make(**given)


def _recipe(method: MergeMethod) -> Callable[..., MergeMethod] | None:
    """The function that made a method of its parameters; None if it was put together."""
    return METHODS.get(method.name) or plugins.load()[0].get(method.name)


def is_fixed(method: Make, name: str, values: Sequence[object]) -> bool:
    """Whether a parameter decides the compiled program, so that each value needs its own."""
    if name in INPUTS:
        return False
    if any(x is None or isinstance(x, (str, bool, Mapping)) for x in values):
        return True
    make = _recipe(method) if isinstance(method, MergeMethod) else method
    found = inspect.signature(make).parameters.get(name) if make else None
    return found is not None and found.annotation not in TRACED


def stacked(name: str, values: Sequence[object]) -> jax.Array:
    """The values of a coefficient as one array.

    Raises:
        MergeError: they are no numbers, or of several shapes.
    """
    kind = np.uint32 if name == "key" else np.float32
    try:
        return jnp.asarray(np.stack([np.asarray(x, kind) for x in values]))
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.MergeError(f"{name}: {error}", hint="give numbers, of one shape") from error


def as_seed(key: PyTree) -> PyTree:
    """A PRNG key of a traced seed; what `merge` takes, else."""
    traced = isinstance(key, jax.core.Tracer) and jnp.issubdtype(key.dtype, jnp.integer)
    return jax.random.key(key) if traced and key.ndim == 0 else key


def split_arrays(tree: Tree) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Tree]]:
    """The arrays of a tree, and what puts arrays in their places beside all else."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def rebuild(arrays: list[jax.Array]) -> Tree:
        filled = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            filled[i] = array
        return jax.tree.unflatten(treedef, filled)

    return [leaves[i] for i in places], rebuild


def is_array(leaf: object) -> bool:
    """Whether a leaf can be an argument of a compiled function."""
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return True
    return isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "biufcV"
