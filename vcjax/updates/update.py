"""What an update must offer: how leaves are expressed by other leaves and by arrays of its own.

An update is pure: it sees contents, never the store that they lie in. A package makes its
own known by naming an instance of it in its pyproject.toml:

    [project.entry-points."vcjax.updates"]
    average = "my_package.updates:AVERAGE"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vcjax.tree import dtype_name

MAX_DEPTH = 4
"""How many updates may stand on each other: a reader opens at most one more object in a row."""

MAX_READS = 256
"""How many objects, counted each time they are read, may go into one leaf."""

Index = tuple[slice, ...]
"""A region of an array: a slice of step 1 for each axis."""


class Content(Protocol):
    """An array, any region of which can be read: a base, a new leaf, or a part of an update.

    Attributes:
        dtype: name of its dtype, as in `vcjax.tree.LeafSpec`.
        shape: of the whole array.
    """

    @property
    def dtype(self) -> str:
        """Name of its dtype."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        ...

    def read(self, index: Index | None = None) -> np.ndarray:
        """A region of it, in canonical form; nobody may write to the array.

        Args:
            index: the region; None for all of it. Nothing else need be loaded for it.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArrayContent:
    """An array in memory.

    Attributes:
        array: the data, C-contiguous.
        name: name of its dtype where NumPy's does not say it, as of PRNG keys.

    Example:
        >>> ArrayContent(np.arange(6.0).reshape(3, 2)).read((slice(1, 2), slice(0, 2)))
        array([[2., 3.]])
    """

    array: np.ndarray
    name: str | None = None

    @property
    def dtype(self) -> str:
        """Name of its dtype."""
        return self.name or dtype_name(self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    def read(self, index: Index | None = None) -> np.ndarray:
        """A region of the array, as a view."""
        return self.array if index is None else np.asarray(self.array[index])


@dataclass(frozen=True)
class Parts:
    """What an update stores of leaves, besides naming their bases.

    Attributes:
        arrays: by name, which is of letters, digits, `_` and `-`.
        parameters: what JSON can hold.
    """

    arrays: Mapping[str, Content] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Region:
    """What is asked of an update: a region of one of its leaves.

    Attributes:
        leaf: which of the leaves that are stored together, from 0.
        index: the region; None for all of the leaf.
    """

    leaf: int = 0
    index: Index | None = None


FIRST = Region()
"""The whole of the first leaf."""


class Update(Protocol):
    """A way to express leaves by others, found under the entry point group `vcjax.updates`.

    What `encode` gave is stored with the leaves' digests, and a leaf that `apply`
    does not give back to the bit is never handed out: arithmetic must round the same
    on every machine, so keep to elementwise IEEE operations in a fixed order.

    Attributes:
        name: as registered; stored with every leaf.
        by_regions: whether `apply` computes a region without computing the whole leaf.
            Else it is asked for whole leaves alone.

    Example:
        >>> class Sum:
        ...     name, by_regions = "sum", True
        ...
        ...     def encode(self, bases, new):
        ...         return Parts({"rest": ArrayContent(new[0].read() - bases[0].read())})
        ...
        ...     def apply(self, bases, parts, region=FIRST):
        ...         return bases[0].read(region.index) + parts.arrays["rest"].read(region.index)
        >>> base, new = (ArrayContent(np.array(values)) for values in ([1, 2], [4, 3]))
        >>> Sum().apply((base,), Sum().encode((base,), (new,)), Region(0, (slice(0, 1),)))
        array([4])
    """

    name: str
    by_regions: bool

    def encode(self, bases: Sequence[Content], new: Sequence[Content]) -> Parts:
        """What is stored of some leaves.

        Args:
            bases: leaves that are stored already, none or several.
            new: the leaves, one or several that are to be stored together.

        Raises:
            UpdateError: it cannot express these leaves by these bases.
        """
        ...

    def apply(self, bases: Sequence[Content], parts: Parts, region: Region = FIRST) -> np.ndarray:
        """A region of one of the leaves that were encoded, of the leaf's dtype.

        Args:
            bases: those of `encode`, in its order; read no more of them than the region needs.
            parts: what `encode` gave.
            region: which leaf, and what of it.
        """
        ...
