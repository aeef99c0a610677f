"""Matching of globs in linear time: all ways to match are followed at once.

A regular expression with several stars backtracks: five of them against 3,000 letters take
longer than anybody waits. Here a text is read once, with the set of places in the glob that
may be reached, one bit each (Thompson, "Regular expression search algorithm", 1968; as bits:
Baeza-Yates and Gonnet, "A new approach to text searching", 1992).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["one", "some", "any", "above", "below"]

_MORE = {"some": r"[^/]*", "any": r".*", "above": r"(?:.*/)?", "below": r"(?:/.*)?"}


@dataclass(frozen=True, slots=True)
class Token:
    """A part of a glob.

    Attributes:
        kind: "one" character; "some" within a segment, or none; "any", or none; none or all
            that is "above", up to a `/`; none or a `/` and all that is "below".
        one: regular expression of the one character.
    """

    kind: Kind
    one: str = ""

    @property
    def expression(self) -> str:
        """The regular expression for it."""
        return _MORE.get(self.kind, self.one)


class Automaton:
    """Whether a text matches tokens, in time that grows as the text times the tokens.

    Places lie before each token and behind the last one; two tokens have one within, too.

    Args:
        tokens: in order.
    """

    def __init__(self, tokens: Sequence[Token]):
        self._ones: list[tuple[int, re.Pattern[str]]] = []
        self._within = self._across = 0  # places where any character but "/", or any, may be passed
        self._to_next = self._over_next = 0  # places from which others are reached by none
        place = 1
        for token in tokens:
            if token.kind == "one":
                self._ones.append((place, re.compile(token.one, re.S)))
            elif token.kind == "some":
                self._within |= place
                self._to_next |= place
            elif token.kind == "any":
                self._across |= place
                self._to_next |= place
            else:
                self._over_next |= place
                self._across |= place << 1
                is_above = token.kind == "above"
                self._to_next |= place if is_above else place << 1
                self._ones.append((place << 1 if is_above else place, re.compile("/")))
                place <<= 1
            place <<= 1
        self._end = place
        self._passes: dict[str, tuple[int, int]] = {}

    def match(self, text: str) -> bool:
        """Whether the whole of a text matches."""
        places = self._closure(1)
        for character in text:
            if not places:
                return False
            ones, loops = self._passed(character)
            places = self._closure((places & ones) << 1 | places & loops)
        return bool(places & self._end)

    def _passed(self, character: str) -> tuple[int, int]:
        """The places at which a character leads to the next one, and at which it leads nowhere."""
        known = self._passes.get(character)
        if known is None:
            ones = sum(place for place, one in self._ones if one.match(character))
            loops = self._across if character == "/" else self._across | self._within
            known = self._passes[character] = ones, loops
        return known

    def _closure(self, places: int) -> int:
        before = 0
        while places != before:  # as often as tokens that match nothing follow each other
            before = places
            places |= (places & self._to_next) << 1 | (places & self._over_next) << 2
        return places
