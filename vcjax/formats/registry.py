"""Finding the plug-in for a checkpoint file, by content, suffix or name."""

import difflib
import functools
import os
from collections.abc import Mapping
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

from absl import logging

from vcjax import errors
from vcjax.formats import files
from vcjax.formats.protocol import Checkpoint, Format

GROUP = "vcjax.formats"
HEAD_BYTES = 64


def formats() -> dict[str, Format]:
    """All installed formats by name: vcjax's own first, then plug-ins by name.

    A plug-in that cannot be loaded is left out and reported once through
    `absl.logging`; asking for it with `format_named` tells why.

    Example:
        >>> sorted(formats())
        ['msgpack', 'npz', 'safetensors']
    """
    return dict(_load()[0])


def format_named(name: str) -> Format:
    """The format that is registered as `name`.

    Raises:
        FormatError: there is none, or its plug-in cannot be loaded.
    """
    loaded, broken = _load()
    if name in loaded:
        return loaded[name]
    if name in broken:
        raise errors.FormatError(
            f"the plug-in for the format {name!r} cannot be loaded: {broken[name]}",
            hint="update or uninstall the package that provides it",
        )
    known = ", ".join(loaded) or "none"
    raise errors.FormatError(
        f"there is no checkpoint format {name!r}",
        hint=_did_you_mean(name, list(loaded)) + f"installed formats: {known}",
    )


def format_of(path: str | os.PathLike[str], for_writing: bool = False) -> Format:
    """The format of a file: by its content if it is there to be read, else by its suffix.

    Args:
        path: the file.
        for_writing: go by the suffix alone, whatever the file now holds.

    Raises:
        FormatError: neither content nor suffix is of a known format.
        StorageError: the file is there but cannot be read.
    """
    path = Path(path)
    name = path.name.lower()
    named = [form for form in formats().values() if name.endswith(form.suffixes)]
    named.sort(key=lambda form: -max(len(end) for end in form.suffixes if name.endswith(end)))
    if not for_writing and path.is_file():
        with files.reading(path, "a checkpoint"), path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        claims = [form for form in formats().values() if _sniffs(form, head)]
        # Where several claim the content, or none does, the suffix decides.
        preferred = [form for form in named if form in claims] or claims or named
    else:
        preferred = named
    if preferred:
        return preferred[0]
    known = [end for form in formats().values() for end in form.suffixes]
    hint = _did_you_mean(path.suffix, known) if path.suffix else ""
    hint += f"known suffixes: {', '.join(known) or 'none (is vcjax installed?)'}; or "
    raise errors.FormatError(
        f"{str(path)!r} is of no known checkpoint format",
        hint=f"{hint}name the format with format=",
        shell_hint=f"{hint}name the format with --format, which commit and checkout take",
    )


def read(path: str | os.PathLike[str], format: str | None = None) -> Checkpoint:
    """Reads a checkpoint file.

    Args:
        path: the file.
        format: name of its format; by default found from content and suffix.

    Returns:
        Its tree, with arrays that may be read-only views of the mapped file, and
        its metadata.

    Raises:
        FormatError: the format is unknown, or the file is damaged.
        StorageError: the file is missing or cannot be read.

    Example:
        >>> read("model.safetensors").tree["encoder.weight"].shape  # doctest: +SKIP
        (512, 512)
    """
    return (format_named(format) if format else format_of(path)).read(Path(path))


def write(
    path: str | os.PathLike[str],
    tree: Any,
    metadata: Mapping[str, Any] | None = None,
    format: str | None = None,
) -> None:
    """Writes a checkpoint file, atomically; equal trees and metadata give equal bytes.

    Args:
        path: the file; its suffix chooses the format.
        tree: a PyTree of arrays (and plain values, where the format has them).
        metadata: what `read` gave, or what to keep beside the tree.
        format: name of the format, whatever the suffix.

    Raises:
        FormatError: the format is unknown or cannot hold this tree or metadata.
        StorageError: the disk refused; a file that was there is unchanged.

    Example:
        >>> write("model.npz", {"kernel": np.ones((2, 3))}, {"step": 1})  # doctest: +SKIP
    """
    chosen = format_named(format) if format else format_of(path, for_writing=True)
    chosen.write(Path(path), tree, metadata or {})


@functools.cache
def _load() -> tuple[dict[str, Format], dict[str, str]]:
    """The formats that could be loaded, and why the others could not."""
    loaded: dict[str, Format] = {}
    broken: dict[str, str] = {}
    entries = sorted(
        distributions.entry_points(group=GROUP),
        key=lambda entry: (not entry.value.startswith(f"{GROUP}."), entry.name, entry.value),
    )
    for entry in entries:
        if entry.name in loaded:
            continue
        try:
            loaded[entry.name] = _checked(entry.load())
        except Exception as error:  # a plug-in may raise anything, and must not break the others
            broken[entry.name] = f"{type(error).__name__}: {error}"
            logging.warning(
                "checkpoint format %r (%s) is left out: %s",
                *(entry.name, entry.value, broken[entry.name]),
            )
    return loaded, broken


def _checked(plug_in: Any) -> Format:
    missing = [
        name for name in ("sniff", "read", "write") if not callable(getattr(plug_in, name, 0))
    ]
    suffixes = getattr(plug_in, "suffixes", None)
    if not isinstance(suffixes, tuple) or not all(isinstance(end, str) for end in suffixes):
        missing.append("suffixes")
    if not isinstance(getattr(plug_in, "name", None), str):
        missing.append("name")
    if missing:
        raise TypeError(f"not a vcjax.formats.Format: {', '.join(missing)} missing or wrong")
    return plug_in


def _sniffs(form: Format, head: bytes) -> bool:
    try:
        return form.sniff(head)
    except Exception as error:  # as above
        logging.warning("checkpoint format %r cannot sniff: %s", form.name, error)
        return False


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""
