"""Leaf path globs: THE rules for patterns of leaf paths, for everybody."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vcjax import errors

_NOT = ("!", "^")


def matches(glob: str, path: str) -> bool:
    """Whether a leaf path glob covers a leaf; rules of one leaf each are told quickly."""
    if glob in ("**", path):
        return True
    if not any(mark in glob for mark in "*?["):
        return path.startswith(f"{glob}/")
    return bool(pattern(glob).match(path))


def _character_class(body: str) -> str:
    """The regular expression for the inside of `[…]` in a glob; never matches "/"."""
    negated, rest = body[0] in _NOT, body[body[0] in _NOT :]
    parts = []
    while rest:
        if rest[1:2] == "-" and len(rest) > 2:
            low, high, rest = rest[0], rest[2], rest[3:]
            if low <= high:  # else the range is empty, where `re` would raise
                parts.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            parts.append(re.escape(rest[0]))
            rest = rest[1:]
    if not parts:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{''.join(parts)}]"


def pattern(glob: str) -> re.Pattern[str]:
    """A compiled leaf-path glob: `*` within a segment, `**` across segments, `?`, `[a-z]`.

    A pattern without wildcards also matches everything below it, so
    "params/encoder" selects the whole encoder.
    """
    if not re.search(r"[*?\[]", glob):
        return re.compile(re.escape(glob) + r"(?:/.*)?\Z", re.S)
    out, i = [], 0
    while i < len(glob):
        if glob.startswith("**/", i):
            out.append(r"(?:.*/)?")
            i += 3
        elif glob.startswith("/**", i) and i + 3 == len(glob):
            out.append(r"(?:/.*)?")
            i += 3
        elif glob.startswith("**", i):
            out.append(r".*")
            i += 2
        elif glob[i] == "*":
            out.append(r"[^/]*")
            i += 1
        elif glob[i] == "?":
            out.append(r"[^/]")
            i += 1
        elif glob[i] == "[" and (end := glob.find("]", i + 2 + (glob[i + 1 : i + 2] in _NOT))) > 0:
            out.append(_character_class(glob[i + 1 : end]))
            i = end + 1
        else:
            out.append(re.escape(glob[i]))
            i += 1
    return re.compile("".join(out) + r"\Z", re.S)


def select(paths: Mapping[str, Any] | list[str], globs: str | Sequence[str] | None) -> list[str]:
    """The leaf paths that match any of `globs` (all of them if `globs` is None).

    Raises:
        TreeError: a glob matches nothing.
    """
    names = list(paths)
    if globs is None:
        return names
    chosen: set[str] = set()
    for glob in [globs] if isinstance(globs, str) else globs:
        expression = pattern(glob)
        hits = [name for name in names if expression.match(name)]
        if not hits:
            raise errors.TreeError(
                f"no leaf path matches {glob!r}",
                hint="`vcjax ls REV` lists the leaf paths; `**` crosses `/`, `*` does not",
            )
        chosen.update(hits)
    return [name for name in names if name in chosen]
