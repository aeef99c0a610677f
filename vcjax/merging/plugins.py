"""Merge methods of other packages, found by entry points."""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata as distributions

from absl import logging

from vcjax.merging import recipes, steps
from vcjax.merging.compose import chain
from vcjax.merging.makers import MAKERS, METHODS, made_of, named_parameters
from vcjax.merging.method import MergeMethod, Transform

GROUP = "vcjax.merge_methods"


@functools.cache
def load_own() -> None:
    """Imports every module that holds steps or recipes of vcjax, which registers them."""
    for package in (steps, recipes):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


@functools.cache
def load() -> tuple[dict[str, Callable[..., MergeMethod]], dict[str, str]]:
    """The merge methods of other packages, and why others of them cannot be had.

    Loading a plug-in imports its module, which also registers the transforms that it
    defines. One that cannot be loaded is left out and reported once through
    `absl.logging`; so is one whose name is taken, by vcjax or by another plug-in (the
    first by what the entry point names).

    Returns:
        `{name: function that makes it}`, and `{name: what is wrong with it}`.
    """
    load_own()
    loaded: dict[str, Callable[..., MergeMethod]] = {}
    sources: dict[str, str] = {}
    broken: dict[str, str] = {}
    entries = distributions.entry_points(group=GROUP)
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        if sources.get(entry.name) == entry.value:  # one package, found twice on the path
            continue
        try:
            _check_name(entry.name, sources)
            loaded[entry.name] = _named(entry.name, entry.load())
            sources[entry.name] = entry.value
        except Exception as error:  # a plug-in may raise anything, and must not break the others
            why = f"{entry.value}: {type(error).__name__}: {error}"
            broken.setdefault(entry.name, why)
            logging.warning("the merge method %r is left out: %s", entry.name, why)
    return loaded, broken


def find(name: str) -> Callable[..., MergeMethod | Transform] | None:
    """The function that makes the methods or steps of this name; None if there is none."""
    for look in (_registered, lambda name: load()[0].get(name), _registered):
        if (make := look(name)) is not None:
            return make
    return None


def _registered(name: str) -> Callable[..., MergeMethod | Transform] | None:
    if name in METHODS:
        return METHODS[name]
    return MAKERS[name].make if name in MAKERS else None


def _check_name(name: str, taken: dict[str, str]) -> None:
    if not name.isidentifier():
        raise ValueError("its name is no identifier, as --method=NAME needs")
    if name in METHODS or name in MAKERS or name in ("chain", "partition", "view_as"):
        raise ValueError("vcjax has a method or step of this name")
    if name in taken:
        raise ValueError(f"{taken[name]} has this name already")


def _named(name: str, make: object) -> Callable[..., MergeMethod]:
    """A function of a plug-in, such that what it makes is known by the name of the plug-in."""
    if not callable(make):
        raise TypeError(f"{type(make).__name__} is no function that makes a merge method")
    signature = named_parameters(make)

    @functools.wraps(make)
    def named(*args: object, **kwargs: object) -> MergeMethod:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made = make(*args, **kwargs)
        method = chain(made) if isinstance(made, Transform) else made_of(MergeMethod, name, made)
        return replace(method, name=name, parameters=dict(bound.arguments))

    return named
