"""Learning the coefficients of a merge: by gradient through it, or by random search."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from vcjax import errors
from vcjax.merging.compose import keep, partition
from vcjax.merging.in_memory import merge
from vcjax.merging.inputs import RandomKey, Tree, Weights, by_path, has_mean
from vcjax.merging.makers import chosen
from vcjax.merging.method import MergeMethod
from vcjax.merging.tuning.sweep import Make, made, mapped_over, split_arrays
from vcjax.tree import exactly

Per = Literal["model", "layer", "leaf"]
Variables = dict[str, jax.Array]
Bounds = tuple[float, float] | Mapping[str, tuple[float, float]] | None

GROW, SHRINK = 1.5, 0.9
"""Steps of the search after a success and a failure: they cancel at one success in five."""


@dataclass(frozen=True)
class Optimised:
    """Coefficients that were learned.

    Attributes:
        method: the method with the learned parameters.
        weights: the learned weights, as `merge` takes them: `[N]`, or by leaf path;
            None if they were not learned.
        coefficients: what was learned, by name; with `per` "layer" or "leaf" each is
            `{layer or leaf path: value}`.
        losses: of every step, before it (gradient) or the best of it (search).
    """

    method: MergeMethod
    weights: Any
    coefficients: dict[str, Any]
    losses: np.ndarray


def optimise(
    method: Make,
    start: Mapping[str, ArrayLike | Sequence[float]],
    loss: Callable[..., Float[Array, ""] | float],
    trees: Sequence[Tree],
    base: Tree = None,
    weights: Weights | None = None,
    statistics: Sequence[Tree] | None = None,
    key: RandomKey | None = None,
    *,
    per: Per = "model",
    by: Literal["gradient", "search"] = "gradient",
    data: Iterable[PyTree] | None = None,
    steps: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    bounds: Bounds = None,
    population: int = 16,
    spread: float = 0.1,
    seed: int = 0,
    batch: int | None = 1,
) -> Optimised:
    """Learns coefficients of a merge that make a loss of the merged model small.

    Args:
        method: as in `sweep`: a recipe, a function of coefficients, or a method.
        start: `{name: where to begin}` of what is learned: parameters of the method
            (numbers or arrays) and `weights` (a number, or one per model).
        loss: `loss(tree)`, or `loss(tree, batch)` if there are `data`: a traceable number.
        trees: as in `merge`, and so are the next four.
        base: see above.
        weights: see above; not if they are learned.
        statistics: see above.
        key: see above; random masks are the same in every step.
        per: coefficients are those of the whole "model", or each "layer" (leaves of one
            module) or each "leaf" has its own. Whole-model methods then see their
            layer as the model.
        by: "gradient", or "search" for losses and coefficients without one (a density,
            an accuracy).
        data: a batch per step, all of one shape; learning ends where they do.
        steps: at most so many.
        optimizer: for gradients; Adam with a rate of .01 by default.
        bounds: `(low, high)`, or by name; coefficients are clipped to them.
        population: how many candidates a step of the search tries, around the best so
            far. They are drawn in mirrored pairs, and wider after a success.
        spread: first standard deviation of the candidates.
        seed: of the search.
        batch: how many candidates are merged at once.

    Returns:
        The coefficients of the least loss; with `data`, whose losses are not
        comparable, those after the last step.

    Raises:
        MergeError: `start` names nothing, or what the method does not take; or the loss
            is no number from the start.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": 0.0}, {"w": 1.0}, {"w": 4.0}
        >>> loss = lambda tree: (tree["w"] - 2) ** 2
        >>> found = merging.optimise(
        ...     merging.task_arithmetic, {"scale": 0.3}, loss, [a, b], base
        ... )
        >>> round(float(found.coefficients["scale"]), 2)
        0.4
    """
    chosen("per", per, "model", "layer", "leaf")
    chosen("by", by, "gradient", "search")
    if not start or ("weights" in start and weights is not None):
        raise errors.MergeError(
            "nothing to learn" if not start else "weights are given, and to be learned",
            hint='name coefficients and where they begin: start={"weights": 0.3}',
        )
    groups = grouped(trees[0], per)
    variables = begin(start, len(trees), groups)
    arrays, rebuild = split_arrays((list(trees), base, statistics))

    def losses(
        variables: Variables, arrays: list[jax.Array], batch: tuple[PyTree, ...]
    ) -> jax.Array:
        models, ground, numbers = rebuild(arrays)
        whole, learned = assembled(method, variables, groups)
        used = weights if learned is None else learned
        return jnp.asarray(loss(merge(models, whole, ground, used, numbers, key), *batch))

    clip = clipper(bounds)
    queue = ((x,) for x in data) if data is not None else iter(lambda: (), None)
    if by == "gradient":
        rule = optimizer or optax.adam(1e-2)
        found, history = descend(losses, variables, arrays, queue, steps, rule, clip, data is None)
    else:
        found, history = search(
            losses, variables, arrays, queue, steps, clip, population, spread, seed, batch
        )
    final = jax.device_get(found)
    whole, learned = assembled(method, final, groups)
    return Optimised(whole, learned, named(final, groups), np.asarray(history, np.float32))


def grouped(tree: Tree, per: Per) -> dict[str, list[str]] | None:
    """`{group: leaf paths}` of the leaves that are merged; None if all share coefficients."""
    if per == "model":
        return None
    found: dict[str, list[str]] = {}
    for path, leaf in by_path(tree).items():
        if has_mean(leaf):
            group = path if per == "leaf" else layer_of(path)
            found.setdefault(group, []).append(path)
    return found


def layer_of(path: str) -> str:
    """The path of the module that a leaf belongs to; of the leaf, at the top of a tree."""
    parent, _, name = path.rpartition("/")
    # A `nnx.Variable` that holds a tree keeps it under this name.
    return layer_of(parent) if parent and name == "value" else parent or path


def begin(
    start: Mapping[str, ArrayLike | Sequence[float]],
    n: int,
    groups: dict[str, list[str]] | None,
) -> Variables:
    """The coefficients to begin with, one row per group if there are groups."""
    variables = {}
    for name, value in start.items():
        array = jnp.asarray(value, jnp.float32)
        if name == "weights":
            if array.shape not in ((), (n,)):
                raise errors.MergeError(f"weights of shape {list(array.shape)} for {n} models")
            array = jnp.broadcast_to(array, (n,))
        rows = () if groups is None else (len(groups),)
        variables[name] = jnp.broadcast_to(array, (*rows, *array.shape))
    return variables


def assembled(
    method: Make, variables: Mapping[str, jax.Array], groups: dict[str, list[str]] | None
) -> tuple[MergeMethod, Any]:
    """The method and the weights that coefficients make."""
    parameters = {name: x for name, x in variables.items() if name != "weights"}
    weights = variables.get("weights")
    if groups is None:
        return made(method, parameters), weights
    by_leaf = {}
    rules: dict[str, MergeMethod] = {}
    for row, paths in enumerate(groups.values()):
        own = made(method, {name: x[row] for name, x in parameters.items()})
        for path in paths:
            rules[exactly(path)] = own
            if weights is not None:
                by_leaf[exactly(path)] = weights[row]
    whole = partition(rules, default=keep()) if parameters else made(method, {})
    return whole, by_leaf if weights is not None else None


def named(variables: Variables, groups: dict[str, list[str]] | None) -> dict[str, Any]:
    """Coefficients by name, and by group if there are groups."""
    if groups is None:
        return dict(variables)
    return {name: dict(zip(groups, x, strict=True)) for name, x in variables.items()}


def clipper(bounds: Bounds) -> Callable[[Variables], Variables]:
    """What brings coefficients back between their bounds."""

    def clip(variables: Variables) -> Variables:
        limits = bounds if isinstance(bounds, Mapping) else dict.fromkeys(variables, bounds)
        clipped = {}
        for name, x in variables.items():
            limit = limits.get(name)
            clipped[name] = x if limit is None else jnp.clip(x, *limit)
        return clipped

    return clip


Losses = Callable[[Variables, list[jax.Array], tuple[PyTree, ...]], jax.Array]


def descend(
    losses: Losses,
    variables: Variables,
    arrays: list[jax.Array],
    queue: Iterator[tuple[PyTree, ...]],
    steps: int,
    rule: optax.GradientTransformation,
    clip: Callable[[Variables], Variables],
    comparable: bool,
) -> tuple[Variables, list[float]]:
    """Gradient steps, compiled once; the best coefficients if losses are comparable."""

    @jax.jit
    def step(
        variables: Variables, state: PyTree, arrays: list[jax.Array], batch: tuple[PyTree, ...]
    ) -> Any:
        value, slope = jax.value_and_grad(losses)(variables, arrays, batch)
        change, state = rule.update(slope, state, variables)
        moved: Any = optax.apply_updates(variables, change)
        return clip(moved), state, value

    state, history = rule.init(variables), []
    best, least = variables, np.inf
    for _, batch in zip(range(steps), queue, strict=False):
        before = variables
        variables, state, value = step(variables, state, arrays, batch)
        history.append(finite_start(float(value), history))
        if comparable and history[-1] < least:
            best, least = before, history[-1]
    if comparable and steps > 0 and float(jax.jit(losses)(variables, arrays, ())) >= least:
        variables = best
    return variables, history


def finite_start(value: float, history: list[float]) -> float:
    """A loss, checked if it is the first."""
    if not history and not np.isfinite(value):
        raise errors.MergeError(
            f"the loss at the start is {value}", hint="start from other coefficients"
        )
    return value


def search(
    losses: Losses,
    variables: Variables,
    arrays: list[jax.Array],
    queue: Iterator[tuple[PyTree, ...]],
    steps: int,
    clip: Callable[[Variables], Variables],
    population: int,
    spread: float,
    seed: int,
    batch: int | None,
) -> tuple[Variables, list[float]]:
    """The best so far against mirrored random candidates around it, one call per step."""
    if population < 2:
        raise errors.MergeError(f"population={population}", hint="try at least 2 candidates")
    pairs = population // 2

    @jax.jit
    def step(
        variables: Variables,
        sigma: Float[Array, ""],
        key: jax.Array,
        arrays: list[jax.Array],
        data: tuple[PyTree, ...],
    ) -> Any:
        keys = jax.random.split(key, len(variables))
        candidates = {}
        for own, (name, x) in zip(keys, variables.items(), strict=True):
            noise = sigma * jax.random.normal(own, (pairs, *x.shape))
            candidates[name] = jnp.concatenate([x[None], x + noise, x - noise])
        candidates = clip(candidates)
        values = mapped_over(
            lambda one: losses(one, arrays, data), candidates, 2 * pairs + 1, batch
        )
        values = jnp.where(jnp.isnan(values), jnp.inf, values)
        winner = jnp.argmin(values)
        sigma = sigma * jnp.where(values[winner] < values[0], GROW, SHRINK)
        return {name: x[winner] for name, x in candidates.items()}, sigma, values[winner]

    root, sigma, history = jax.random.key(seed), jnp.float32(spread), []
    for number, data in zip(range(steps), queue, strict=False):
        key = jax.random.fold_in(root, number)
        variables, sigma, value = step(variables, sigma, key, arrays, data)
        history.append(finite_start(float(value), history))
    return variables, history
