"""Counting on the host: the few elements of a slice that a pass is still about.

XLA on CPU adds up a histogram one element at a time, whether it counts or not: 5.7 ns per
element. To compare all of them, and to let NumPy count those that count, takes 1.6 to 3,
the more the more of them count.

In the last pass the counts are remembered by slice (6 bytes for each digit that occurs). So
it is known before anything is merged in which slice the last is kept of the elements that
equal the threshold; of all other slices it is all or none. TIES then merges at 1.2 ns per
element and model; it takes 2.7 if the program that merges has to count and search.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

BINS = 1 << 16
SHORT = 1 << 12
NONE, ALL = np.uint32(0), np.uint32(0xFFFFFFFF)


class Ties(NamedTuple):
    """Which elements of the next slice are kept of those that equal the threshold.

    Attributes:
        taken: `int32[N]`, how many the slices before had of each model.
        stops: `uint32[N]`, they are kept before this position in the slice; None where
            the program that merges has to find out.
    """

    taken: Any
    stops: Any = None


class Quota(NamedTuple):
    """How many elements that equal the threshold are kept.

    Attributes:
        digit: `[N]`, the last digit of the threshold of each model.
        wanted: `[N]`, how many are kept of each.
    """

    digit: np.ndarray
    wanted: np.ndarray


class Picks:
    """Histograms of the digits of N models, made slice by slice."""

    def __init__(self, models: int):
        self._slices: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(models)]
        self._remembers = False

    def remember(self) -> None:
        """Keeps from now on what is counted in each slice, for `shares`."""
        self._remembers = True

    def count(self, model: int, mask: np.ndarray, digits: np.ndarray) -> np.ndarray:
        """`int32[65536]`, how often each digit occurs where the mask is set, in one slice."""
        # 15 % set: 1.5 ns per element, and `digits[mask]` 5.
        picked = digits.ravel().compress(mask.ravel())
        counts = np.bincount(picked, minlength=BINS).astype(np.int32)
        if self._remembers:
            there = np.flatnonzero(counts)
            self._slices[model].append((there.astype(np.uint16), counts[there]))
        return counts

    def shares(self, quota: Quota) -> "list[Shares]":
        """What of the ties of each slice is kept, for each model."""
        return [
            Shares.of([counts[there == digit].sum() for there, counts in slices], wanted)
            for slices, digit, wanted in zip(self._slices, *quota, strict=True)
        ]


class Shares(NamedTuple):
    """What is kept of the ties of each slice of one model.

    Attributes:
        kept: how many, by slice.
        ties: how many there are.
    """

    kept: np.ndarray
    ties: np.ndarray

    @classmethod
    def of(cls, ties: list[int], wanted: int) -> "Shares":
        """The first so many of all slices are kept."""
        each = np.asarray(ties, np.int64)
        return cls(np.clip(wanted - (np.cumsum(each) - each), 0, each), each)

    def stop(self, number: int, find: Callable[[], np.ndarray]) -> np.uint32:
        """Where what is kept ends in a slice.

        Args:
            number: of the slice.
            find: gives the mask of its ties; asked only if some are kept and some are not.
        """
        kept = self.kept[number]
        if kept == self.ties[number]:
            return ALL
        return NONE if not kept else np.uint32(position(find().ravel(), kept - 1) + 1)


def nth_digit(counts: np.ndarray, need: int) -> tuple[int, int, int]:
    """The digit of the `need`-th largest: (digit, how many are above, how many equal).

    `vcjax.merging.kernels.top_k.choose_digit` in 0.1 ms; its program takes 2 on CPU.
    """
    sums = np.cumsum(counts[::-1])
    place = min(int(np.searchsorted(sums, need)), counts.size - 1)
    digit = counts.size - 1 - place
    return digit, int(sums[place]) - int(counts[digit]), int(counts[digit])


def position(mask: np.ndarray, number: int) -> int:
    """Where the set element of this number, from 0, is: by bisection, 0.2 ns per element."""
    start, stop = 0, mask.size
    while stop - start > SHORT:
        middle = (start + stop) // 2
        there = int(np.count_nonzero(mask[start:middle]))
        if number < there:
            stop = middle
        else:
            start, number = middle, number - there
    return start + int(np.flatnonzero(mask[start:stop])[number])
