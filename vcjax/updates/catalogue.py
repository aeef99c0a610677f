"""Which updates are installed: vcjax's own, and plug-ins of the group `vcjax.updates`."""

import difflib
import functools
from dataclasses import dataclass, field
from importlib import metadata as distributions
from typing import Any

from absl import logging

from vcjax import errors
from vcjax.updates.update import Update

GROUP = "vcjax.updates"


@dataclass(frozen=True)
class _Found:
    """What the entry points lead to.

    Attributes:
        updates: those that could be loaded, by name.
        packages: name and version of the package that provides each of them.
        broken: why others could not be loaded, by name.
    """

    updates: dict[str, Update] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def installed() -> dict[str, Update]:
    """All installed updates by name: vcjax's own first, then plug-ins by name.

    A plug-in that cannot be loaded is left out and reported once through
    `absl.logging`; asking for it with `update_named` tells why.

    Example:
        >>> sorted(installed())
        ['difference']
    """
    return dict(_load().updates)


def update_named(name: str) -> Update:
    """The update that is registered as `name`.

    Raises:
        UnknownFormatError: there is none, or its plug-in cannot be loaded.
    """
    found = _load()
    if name in found.updates:
        return found.updates[name]
    if name in found.broken:
        raise errors.UnknownFormatError(
            f"the plug-in for the update {name!r} cannot be loaded: {found.broken[name]}",
            hint="update or uninstall the package that provides it",
        )
    close = difflib.get_close_matches(name, list(found.updates), n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    known = ", ".join(found.updates) or "none (is vcjax installed?)"
    raise errors.UnknownFormatError(
        f"there is no update {name!r}",
        hint=f"{meant}install the package that provides it; installed updates: {known}",
    )


def package_of(name: str) -> str:
    """Name and version of the package that provides an installed update; empty if unknown."""
    return _load().packages.get(name, "")


@functools.cache
def _load() -> _Found:
    """What is installed. Of two plug-ins of one name neither is taken, but vcjax's own is."""
    found = _Found()
    entries: dict[str, list[distributions.EntryPoint]] = {}
    for entry in sorted(
        distributions.entry_points(group=GROUP),
        key=lambda entry: (not entry.value.startswith(f"{GROUP}."), entry.name, entry.value),
    ):
        entries.setdefault(entry.name, []).append(entry)
    for name, claims in entries.items():
        own = [entry for entry in claims if entry.value.startswith(f"{GROUP}.")]
        try:
            entry = _only(own or claims)
            found.updates[name] = _checked(name, entry.load())
            found.packages[name] = _package(entry)
        except Exception as error:  # a plug-in may raise anything, and must not break the others
            found.broken[name] = f"{type(error).__name__}: {error}"
            logging.warning("update %r is left out: %s", name, found.broken[name])
    return found


def _only(claims: list[distributions.EntryPoint]) -> distributions.EntryPoint:
    if len({entry.value for entry in claims}) > 1:
        sources = sorted(f"{_package(entry) or '?'} ({entry.value})" for entry in claims)
        raise LookupError(f"several packages provide it: {errors.listing(sources)}")
    return claims[0]


def _package(entry: distributions.EntryPoint) -> str:
    dist = getattr(entry, "dist", None)
    return "" if dist is None else f"{dist.name} {dist.version}"


def _checked(name: str, plug_in: Any) -> Update:
    wrong = [part for part in ("encode", "apply") if not callable(getattr(plug_in, part, None))]
    if not isinstance(getattr(plug_in, "by_regions", None), bool):
        wrong.append("by_regions")
    if not isinstance(getattr(plug_in, "name", None), str):
        wrong.append("name")
    if wrong or isinstance(plug_in, type):
        what = f"{', '.join(wrong)} missing or wrong" if wrong else "a class, and no instance of it"
        raise TypeError(f"not a vcjax.updates.Update: {what}")
    if plug_in.name != name:
        raise ValueError(f"it is registered as {name!r} and calls itself {plug_in.name!r}")
    return plug_in
