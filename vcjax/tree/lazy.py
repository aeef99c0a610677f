"""Stand-ins for arrays: read when they are needed and not kept, or kept in part."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from vcjax import errors
from vcjax.tree import dtypes


@dataclass(frozen=True, slots=True, eq=False)
class LazyArray:
    """An array that is elsewhere: in a file, or still to be computed.

    It may be a leaf of a tree like any other. A commit reads one such leaf after
    the other and frees each before it reads the one after the next, so that the
    tree need not fit into memory. Everything else that asks for its data reads
    it anew.

    Attributes:
        shape: of the array.
        dtype: of the array.
        read: gives the array, in host memory; nobody else may write to it.
        read_part: where parts can be read alone, (start, stop) -> those elements, in
            C order, as a flat array that nobody else may write to.

    Example:
        >>> lazy = LazyArray((3,), np.dtype("float32"), lambda: np.ones(3, np.float32))
        >>> float(np.sum(lazy))
        3.0
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    read_part: Callable[[int, int], np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the array in host memory, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        if array.shape != self.shape or dtypes.dtype_name(array.dtype) != dtypes.dtype_name(
            self.dtype
        ):
            raise errors.TreeError(
                f"{array.dtype}{list(array.shape)} was read where a lazy leaf promised "
                f"{self.dtype}{list(self.shape)}",
                hint="its source has changed meanwhile",
            )
        return array if dtype is None else array.astype(dtype, copy=False)


Region = tuple[slice, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Excerpt:
    """Those regions of an array that a commit will write; the rest was not fetched.

    Attributes:
        shape: of the whole array.
        dtype: of the array.
        parts: {start and stop along each axis: content}.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Mapping[tuple[tuple[int, int], ...], np.ndarray]

    def part(self, region: Region | None) -> np.ndarray:
        """The content of one of the regions.

        Raises:
            ConflictError: it was not fetched.
        """
        found = None if region is None else self.parts.get(bounds(region))
        if found is None:
            raise errors.ConflictError(
                "the branch has moved since the commit began, and more of a leaf has to be "
                "written than was fetched",
                hint="commit again",
            )
        return found


def bounds(region: Region) -> tuple[tuple[int, int], ...]:
    """Start and stop along each axis."""
    return tuple((part.start, part.stop) for part in region)
