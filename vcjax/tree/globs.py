"""Leaf path globs: THE rules for patterns of leaf paths, for everybody.

`*` and `?` stay within a segment, `**` crosses segments, `[a-z]` and `[!a-z]` are one
character. A glob without wildcards also matches everything below it, so
"params/encoder" is the whole encoder. Paths are those of `vcjax.tree.spec`: a `/`
within a key is written `%2F`.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from vcjax import errors
from vcjax.tree.automaton import Automaton, Token

T = TypeVar("T")

_NOT = ("!", "^")
_WILDCARDS = re.compile(r"[*?\[]")

MAX_STEPS = 1_000_000
"""How many steps a regular expression may take, some milliseconds at the most. For usual globs
and paths it takes 0.3 µs and the automaton, whose time is linear, 20 µs."""

CROSSES = "`**` crosses `/`, `*` does not, and a `/` within a key is written `%2F`"
"""What to tell whoever wrote a glob that matches nothing."""


def matches(glob: str, path: str) -> bool:
    """Whether a leaf path glob covers a leaf."""
    return pattern(glob).match(path)


def exactly(path: str) -> str:
    """The glob that matches a leaf path alone, and what is below it."""
    # A glob with wildcards would not match what is below of itself.
    return f"{_WILDCARDS.sub(lambda mark: f'[{mark[0]}]', path)}/**" if _is_wild(path) else path


def unmatched(globs: Iterable[str], paths: Iterable[str]) -> list[str]:
    """The globs that match none of the leaf paths."""
    names = list(paths)
    known = {above for name in names for above in (name, *_above(name))}
    return [
        glob
        for glob in globs
        if not (any(map(pattern(glob).match, names)) if _is_wild(glob) else glob in known)
    ]


class FirstMatch(Generic[T]):
    """Rules of which the first whose glob matches a leaf path counts.

    Many rules are the path of one leaf each, and so are looked up, not tried in turn.

    Args:
        rules: (leaf path glob, what it says), in the order in which they count.

    Example:
        >>> rules = FirstMatch([("head/*", 1), ("**", 2)])
        >>> rules.find("head/kernel"), rules.find("body/kernel")
        (1, 2)
    """

    def __init__(self, rules: Iterable[tuple[str, T]]):
        self._plain: dict[str, tuple[int, T]] = {}
        self._globs: list[tuple[int, Glob, T]] = []
        for at, (glob, value) in enumerate(rules):
            if _is_wild(glob):
                self._globs.append((at, pattern(glob), value))
            else:
                self._plain.setdefault(glob, (at, value))

    def find(self, path: str) -> T | None:
        """What the first rule that matches says; None if no rule does."""
        names = (path, *_above(path))
        plain = (self._plain[name] for name in names if name in self._plain)
        first, value = min(plain, key=lambda rule: rule[0], default=(None, None))
        for at, glob, other in self._globs:
            if first is not None and at > first:
                break
            if glob.match(path):
                return other
        return value


def _is_wild(glob: str) -> bool:
    return _WILDCARDS.search(glob) is not None


def _above(path: str) -> list[str]:
    """The paths of the nodes that a leaf is in, but for the root."""
    return [path[:at] for at, mark in enumerate(path) if mark == "/"]


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


class Glob:
    """A leaf path glob that was read.

    Args:
        text: of the glob.
    """

    def __init__(self, text: str):
        tokens = _merged(_tokens(text))
        self._stars = sum(token.kind != "one" for token in tokens)
        self._tokens = tokens

    @functools.cached_property
    def _regular(self) -> re.Pattern[str]:
        return re.compile("".join(token.expression for token in self._tokens) + r"\Z", re.S)

    @functools.cached_property
    def _automaton(self) -> Automaton:
        return Automaton(self._tokens)

    def match(self, path: str) -> bool:
        """Whether the glob matches the whole of a path; in linear time, however many stars."""
        if self._stars * math.log(len(path) + 1) <= math.log(MAX_STEPS):
            return self._regular.match(path) is not None
        return self._automaton.match(path)


@functools.lru_cache(4096)
def pattern(glob: str) -> Glob:
    """A leaf path glob, which `match`es the whole of a path."""
    return Glob(glob)


def _tokens(glob: str) -> Iterator[Token]:
    if not _is_wild(glob):
        yield from (Token("one", re.escape(mark)) for mark in glob)
        yield Token("below")
        return
    i = 0
    while i < len(glob):
        if glob.startswith("**/", i):
            yield Token("above")
            i += 3
        elif glob.startswith("/**", i) and i + 3 == len(glob):
            yield Token("below")
            i += 3
        elif glob.startswith("**", i):
            yield Token("any")
            i += 2
        elif glob[i] == "*":
            yield Token("some")
            i += 1
        elif glob[i] == "?":
            yield Token("one", r"[^/]")
            i += 1
        elif glob[i] == "[" and (end := glob.find("]", i + 2 + (glob[i + 1 : i + 2] in _NOT))) > 0:
            yield Token("one", _character_class(glob[i + 1 : end]))
            i = end + 1
        else:
            yield Token("one", re.escape(glob[i]))
            i += 1


def _merged(tokens: Iterable[Token]) -> list[Token]:
    """The same with each run of tokens that may match nothing as short as it can be."""
    merged: list[Token] = []
    for token in tokens:
        kinds = (merged[-1].kind, token.kind) if merged else ("one", token.kind)
        if kinds == ("above", "above") or (kinds[0] == "any" and kinds[1] != "one"):
            continue  # what it matches the one before does
        if kinds[1] == "any" and kinds[0] != "one":
            merged.pop()
        merged.append(token)
    return merged


def select(
    paths: Iterable[str] | Mapping[str, object], globs: Sequence[str] | str | None
) -> list[str]:
    """The leaf paths that match any of `globs` (all of them if `globs` is None).

    Raises:
        TreeError: a glob matches nothing.
    """
    names = list(paths)
    if globs is None:
        return names
    wanted = [globs] if isinstance(globs, str) else list(globs)
    for glob in unmatched(wanted, names):
        raise errors.TreeError(
            f"no leaf path matches {glob!r}", hint=f"`vcjax ls REV` lists the leaf paths; {CROSSES}"
        )
    chosen = FirstMatch((glob, True) for glob in wanted)
    return [name for name in names if chosen.find(name)]
