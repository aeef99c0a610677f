"""Merge methods as plain JSON, and back: `to_config`, `from_config`, and what a commit records."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import jax.core
import numpy as np

from vcjax import errors, merging
from vcjax.errors import MergeError
from vcjax.merging import recipes, steps
from vcjax.merging.compose import chain, partition, view_as
from vcjax.merging.method import MAKERS, METHODS, MergeMethod, Transform


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
    """Imports every module that holds steps or recipes, which registers them."""
    for package in (steps, recipes):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


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


def as_method(method: Any) -> "merging.MergeMethod | None":
    """A merge method from one, its name, or its {"name": …, "parameters": …}.

    Raises:
        MergeError: it is anything else, or there is no such method.
    """
    if method is None or isinstance(method, merging.MergeMethod):
        return method
    config = {"name": method} if isinstance(method, str) else method
    if isinstance(config, Mapping) and isinstance(config.get("name"), str):
        parameters = config.get("parameters") or {}
        if config.keys() <= {"name", "parameters"} and isinstance(parameters, Mapping):
            try:
                return merging.from_config(config["name"], parameters)
            except (KeyError, AttributeError, TypeError) as error:  # parts of compositions
                raise MergeError(
                    f"{config['name']} cannot be made of these parameters: {error!r}",
                    hint="write the method's `to_config`",
                ) from error
    name = getattr(method, "__name__", None)
    raise MergeError(
        f"{method!r} is no merge method",
        hint=f"call it: method={name}()"
        if callable(method) and name in merging.methods()
        else "give a method such as vcjax.merging.average(), its name, or "
        "{'name': …, 'parameters': …}",
    )
