"""Putting merge methods together, and writing them down.

`chain` runs steps one after the other; `partition` and `masked` give leaf paths
methods of their own; `view_as` sets the axes of leaves; `to_config` and
`from_config` turn a method into plain JSON and back.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import numpy as np

from vcjax import errors
from vcjax.merging.atoms import take_base
from vcjax.merging.method import MAKERS, METHODS, MergeMethod, Transform, recipe
from vcjax.merging.view import View

RECIPES = (
    "atoms",
    "compose",
    "agreement",
    "adaptation",
    "competition",
    "dropping",
    "elementwise",
    "geodesic",
    "masks",
    "pairwise",
    "sparse",
    "spectral",
    "statistics",
)
"""The modules of vcjax.merging that hold transforms and recipes."""


def chain(*steps: Transform | MergeMethod) -> MergeMethod:
    """A method that runs these steps in order (methods count as their own steps).

    Args:
        *steps: transforms, with exactly one reduction among them.

    Example:
        >>> from vcjax import merging
        >>> mean = merging.chain(merging.weighted_sum(normalize=True))
        >>> merging.merge([{"a": 1.0}, {"a": 3.0}], mean)["a"].item()
        2.0
    """
    flat: list[Transform] = []
    for step in steps:
        if isinstance(step, MergeMethod):
            if step.rules:
                raise errors.MergeError(
                    "a partition cannot be a step of a chain", hint="partition whole chains"
                )
            flat.extend(step.transforms)
        else:
            flat.append(step)
    return MergeMethod("chain", {"steps": tuple(flat)}, tuple(flat))


@recipe
def keep() -> MergeMethod:
    """The base model's leaf (the first model's without a base)."""
    return chain(take_base())


def partition(rules: Mapping[str, MergeMethod], default: MergeMethod | None = None) -> MergeMethod:
    """A method per leaf path: the first glob that matches decides.

    Args:
        rules: `{leaf path glob: method}`; `*` stays within a segment, `**` crosses them.
        default: for leaves that no glob matches; None raises for them.

    Example:
        >>> from vcjax import merging
        >>> method = merging.partition(
        ...     {"head": merging.keep()}, default=merging.average()
        ... )
        >>> merging.merge([{"head": 1.0, "body": 1.0}, {"head": 3.0, "body": 3.0}], method)
        {'body': Array(2., dtype=float32), 'head': Array(1., dtype=float32)}
    """
    parameters: dict[str, Any] = {"rules": dict(rules)}
    pairs = list(rules.items())
    if default is not None:
        parameters["default"] = default
        pairs.append(("**", default))
    return MergeMethod("partition", parameters, rules=tuple(pairs))


def masked(method: MergeMethod, globs: Sequence[str] | str) -> MergeMethod:
    """Merges only the leaves that match; the others are the base's (or first model's).

    Args:
        method: for the leaves that match any of `globs`.
        globs: leaf path globs.
    """
    names = [globs] if isinstance(globs, str) else list(globs)
    return partition(dict.fromkeys(names, method), default=keep())


def view_as(
    method: MergeMethod, views: Mapping[str, View | Sequence[Sequence[int]]]
) -> MergeMethod:
    """The method with the matrix axes of some leaves set by path.

    Args:
        method: any method.
        views: `{leaf path glob: View(inputs, outputs, layers)}`.
    """
    fixed = {glob: View(*(tuple(axes) for axes in view)) for glob, view in views.items()}
    if method.rules:
        rules = tuple((glob, view_as(inner, views)) for glob, inner in method.rules)
        return MergeMethod("view_as", {"method": method, "views": fixed}, rules=rules)
    pairs = (*fixed.items(), *method.views)
    return MergeMethod("view_as", {"method": method, "views": fixed}, method.transforms, (), pairs)


def to_config(method: MergeMethod | Transform) -> dict[str, Any]:
    """The method as JSON: `{"name": …, "parameters": {…}}`; mappings keep their order.

    Raises:
        MergeError: a parameter is traced, so its value is not known.
    """
    return {"name": method.name, "parameters": {k: _plain(v) for k, v in method.parameters.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, (MergeMethod, Transform)):
        return to_config(value)
    if isinstance(value, Mapping):  # the first glob that matches counts, and JSON sorts its keys
        return {"items": [[str(key), _plain(inner)] for key, inner in value.items()]}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    if isinstance(value, jax.core.Tracer):
        raise errors.MergeError(
            "a traced coefficient has no value to record",
            hint="call to_config outside jit, grad and vmap",
        )
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return np.asarray(value).tolist()
    return value


def from_config(name: str, parameters: Mapping[str, Any] | None = None) -> MergeMethod:
    """The method that `to_config` described. Only vcjax's own methods are known by name.

    Raises:
        MergeError: no such method, or parameters that it does not take.
    """
    made = _make(name, parameters or {})
    return made if isinstance(made, MergeMethod) else chain(made)


def methods() -> list[str]:
    """Names of all merge methods."""
    _load()
    return sorted(METHODS)


def _load() -> None:
    for module in RECIPES:
        importlib.import_module(f"vcjax.merging.{module}")


def _make(name: str, parameters: Mapping[str, Any]) -> MergeMethod | Transform:
    _load()
    arguments = {key: _revive(value) for key, value in parameters.items()}
    if name == "chain":
        return chain(*arguments["steps"])
    composed = {"partition": partition, "view_as": view_as}
    make = composed.get(name) or METHODS.get(name)
    if make is None and name in MAKERS:
        make = MAKERS[name].make
    if make is None:
        raise errors.MergeError(
            f"there is no merge method {name!r}", hint=f"one of {', '.join(sorted(METHODS))}"
        )
    try:
        return make(**arguments)
    except TypeError as error:
        raise errors.MergeError(f"{name}: {error}") from error


def _revive(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"name", "parameters"}:
            return _make(value["name"], value["parameters"])
        if set(value) == {"items"} and _are_pairs(value["items"]):
            return {key: _revive(inner) for key, inner in value["items"]}
        return {key: _revive(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_revive(inner) for inner in value)
    return value


def _are_pairs(value: Any) -> bool:
    """Whether a value is what `_plain` makes of the items of a mapping."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in value
    )
