"""Which rows, columns and blocks of a leaf changed, found as its elements stream by."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

BLOCK_SIDE = 64
"""Rows and columns of the blocks that are counted."""


class Pattern:
    """Which rows, columns and blocks of a leaf have an element that changed.

    The leaf is taken as a matrix: its last axis are the columns, all others
    together the rows. Scalars and vectors are one row.

    Args:
        shape: of the leaf.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.elements = math.prod(shape)
        self._columns = shape[-1] if shape else 1
        self._rows = self.elements // self._columns if self._columns else 0
        self._row = np.zeros(self._rows, np.bool_)
        self._column = np.zeros(self._columns, np.bool_)
        sides = -(-self._rows // BLOCK_SIDE), -(-self._columns // BLOCK_SIDE)
        self._block = np.zeros(sides, np.bool_)

    def add(
        self,
        start: int,
        old: Shaped[np.ndarray, " elements"],
        new: Shaped[np.ndarray, " elements"],
        figures: Mapping[str, int | float],
    ) -> None:
        """Takes note of some elements.

        Args:
            start: place of the first in the leaf, in C order.
            old: their contents before.
            new: their contents now.
            figures: those of `block_figures` of the same elements.
        """
        changed = figures["changed"]
        if not changed:
            return
        if old.size - changed < self._smallest(start, start + old.size):
            self._all(start, start + old.size)
            return
        # A row's worth at once, however long the rows are.
        step = max(1, (1 << 18) // self._columns) * self._columns
        nan = bool(figures["nan_old"] and figures["nan_new"])
        at = 0
        while at < old.size:
            until = min(old.size, (start + at) // step * step + step - start)
            self._mark(start + at, _differ(old[at:until], new[at:until], nan))
            at = until

    def _smallest(self, start: int, stop: int) -> int:
        """How many elements the smallest row, column or block has between two places.

        If fewer than these are equal, all of them have been touched; nothing need be read.
        """
        if start % self._columns or stop % self._columns:
            return 1
        first, last = start // self._columns, stop // self._columns
        middle = BLOCK_SIDE if last - first >= BLOCK_SIDE else last - first
        heights = {-first % BLOCK_SIDE or middle, last % BLOCK_SIDE or middle}
        if last - first < BLOCK_SIDE and first // BLOCK_SIDE == (last - 1) // BLOCK_SIDE:
            heights = {last - first}
        width = self._columns % BLOCK_SIDE or min(BLOCK_SIDE, self._columns)
        return min(last - first, self._columns, width * min(heights))

    def _all(self, start: int, stop: int) -> None:
        first, last = start // self._columns, (stop - 1) // self._columns
        self._row[first : last + 1] = True
        if last > first + 1 or stop - start >= self._columns:
            self._column[:] = True
            self._block[-(-start // self._columns) // BLOCK_SIDE : last // BLOCK_SIDE + 1] = True
            # The first and last row may be there in part.
        for row in {first, last}:
            low, high = max(start, row * self._columns), min(stop, (row + 1) * self._columns)
            low, high = low - row * self._columns, high - row * self._columns
            self._column[low:high] = True
            self._block[row // BLOCK_SIDE, low // BLOCK_SIDE : (high - 1) // BLOCK_SIDE + 1] = True

    def _mark(self, start: int, mask: Bool[np.ndarray, " elements"]) -> None:
        """Takes note of a mask of elements from `start` on."""
        before = start % self._columns
        after = -(start + mask.size) % self._columns
        if before or after:
            mask = np.pad(mask, (before, after))
        matrix, first = mask.reshape(-1, self._columns), start // self._columns
        self._row[first : first + len(matrix)] |= matrix.any(1)
        # First the rows of every band of blocks: along the columns they are next to each other,
        # and `any` is 20 times faster than `reduceat`.
        bands = range(-(first % BLOCK_SIDE), len(matrix), BLOCK_SIDE)
        banded = np.array([matrix[max(0, at) : at + BLOCK_SIDE].any(0) for at in bands])
        self._column |= banded.any(0)
        edges = np.arange(0, self._columns, BLOCK_SIDE)
        band = first // BLOCK_SIDE
        self._block[band : band + len(bands)] |= np.logical_or.reduceat(banded, edges, axis=1)

    def figures(self) -> dict[str, Any]:
        """How many rows, columns and blocks there are, and how many of them were touched."""
        found = {}
        for name, marks in (
            ("rows", self._row),
            ("columns", self._column),
            ("blocks", self._block),
        ):
            found[name], found[f"{name}_touched"] = int(marks.size), int(marks.sum())
        return found


def _differ(
    old: Shaped[np.ndarray, " elements"], new: Shaped[np.ndarray, " elements"], nan: bool
) -> Bool[np.ndarray, " elements"]:
    """Which elements differ; 0 and −0 are equal, and so are NaN and NaN, if there are such."""
    different = old != new
    return different & ~((old != old) & (new != new)) if nan else different
