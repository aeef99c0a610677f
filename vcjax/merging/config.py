"""Merge methods as plain JSON, and back: `to_config`, `from_config`.

A method is named, in a configuration, on the command line and in a commit, by

- the function of vcjax that makes it: `ties`, `slerp`;
- a name that another package declares in its entry-point group `vcjax.merge_methods`::

      [project.entry-points."vcjax.merge_methods"]
      halve = "mypackage.merges:halve"

  where `halve` takes parameters by name and gives a `MergeMethod` (or a `Transform`,
  which is a method of one step). vcjax declares none of its own: each module of
  `merging/recipes` and `merging/steps` is loaded, and that is what registers them;
- `module:function`, if `merging.recipe` or `merging.transform` decorates the function.

Names are looked up among what is installed and what is imported already, and nothing is
ever imported because a commit names it. A step that no such function made is recorded
as `unregistered NAME`, which nothing is called: it cannot be merged again.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import jax.core
import numpy as np

from vcjax import errors, merging
from vcjax.errors import MergeError
from vcjax.merging import plugins
from vcjax.merging.compose import chain, partition, view_as
from vcjax.merging.makers import METHODS
from vcjax.merging.method import MergeMethod, Transform
from vcjax.merging.shapes import Json, Parameters

UNREGISTERED = "unregistered "
"""What the recorded name of a step begins with that no registered function made."""


def to_config(method: MergeMethod | Transform) -> dict[str, Any]:
    """The method as JSON: `{"name": …, "parameters": {…}}`; mappings keep their order.

    Raises:
        MergeError: a parameter is traced, so its value is not known, or is none of JSON.
    """
    name = method.name
    if isinstance(method, Transform) and method.maker is None:
        name = UNREGISTERED + name
    parameters = {key: _plain(value) for key, value in method.parameters.items()}
    return {"name": name, "parameters": parameters}


def _plain(value: object) -> Json:
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
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise errors.MergeError(
        f"{value!r} is no parameter that can be recorded",
        hint="give numbers, text, None, arrays, and lists and mappings of them",
    )


def from_config(name: str, parameters: Parameters | None = None) -> MergeMethod:
    """The method that `to_config` described; this module's docstring says what has a name.

    Raises:
        MergeError: no such method, or parameters that it does not take.
    """
    made = _make(name, parameters or {})
    return made if isinstance(made, MergeMethod) else chain(made)


def methods() -> list[str]:
    """Names of all merge methods: vcjax's own, and those of installed packages."""
    plugins.load_own()
    own = (name for name in METHODS if ":" not in name)
    return sorted({*own, *plugins.load()[0]})


def _make(name: str, parameters: Parameters) -> MergeMethod | Transform:
    plugins.load_own()
    arguments = {key: _revive(value) for key, value in parameters.items()}
    if name == "chain":
        return chain(*arguments["steps"])
    composed = {"partition": partition, "view_as": view_as}
    make = composed.get(name) or plugins.find(name)
    if make is None:
        raise _unknown(name)
    try:
        return make(**arguments)
    except TypeError as error:
        taken = ", ".join(inspect.signature(make).parameters) or "no parameters"
        raise errors.MergeError(f"{name}: {error}", hint=f"{name} takes {taken}") from error


def _unknown(name: str) -> errors.MergeError:
    """Why there is nothing of this name, and what to do about it."""
    broken = plugins.load()[1].get(name)
    if broken is not None:
        return errors.MergeError(
            f"the plug-in for the merge method {name!r} cannot be loaded: {broken}",
            hint="update or uninstall the package that provides it",
        )
    if name.startswith(UNREGISTERED):
        return errors.MergeError(
            f"the step {name.removeprefix(UNREGISTERED)!r} was made by no function that has a "
            "name, so that it cannot be made again",
            hint="merge the inputs anew with a step that a function makes which "
            "vcjax.merging.transform decorates",
        )
    if ":" in name:
        return errors.MergeError(
            f"the step or method {name!r} is not registered here",
            hint=f"import {name.partition(':')[0]} first, or install the package that declares a "
            f"method of it in its entry points {plugins.GROUP!r}",
        )
    close = difflib.get_close_matches(name, methods(), n=1)
    return errors.MergeError(
        f"there is no merge method {name!r}",
        hint=(f"did you mean {close[0]!r}? " if close else "") + f"one of {', '.join(methods())}",
    )


def _revive(value: object) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"name", "parameters"}:
            return _make(value["name"], value["parameters"])
        if set(value) == {"items"} and _are_pairs(value["items"]):
            return {key: _revive(inner) for key, inner in value["items"]}
        return {key: _revive(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_revive(inner) for inner in value)
    return value


def _are_pairs(value: object) -> TypeGuard[Sequence[tuple[str, object]]]:
    """Whether a value is what `_plain` makes of the items of a mapping."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in value
    )


def as_method(method: object) -> "merging.MergeMethod | None":
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
