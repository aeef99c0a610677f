"""A stored object and what it stands on, as far as headers tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from vcjax import updates
from vcjax.objects.array_metadata import zarr_dtype
from vcjax.objects.header import DENSE, ArrayHeader
from vcjax.objects.relation import Base, Relation, StoredPart


@dataclass(frozen=True, eq=False)
class Link:
    """A stored object whose header was checked, and what it stands on.

    Attributes:
        key: where it is.
        header: its own.
        dtype: of the leaf.
        shape: of the leaf.
        relation: how an update expresses it; None for dense objects and differences.
        folder: where the parts of the update are.
        leaf: which of the leaves that are stored together it is.
        below: {key: link} of the objects that the bases are in.
    """

    key: str
    header: ArrayHeader
    dtype: str
    shape: tuple[int, ...]
    relation: Relation | None = None
    folder: str = ""
    leaf: int = 0
    below: Mapping[str, "Link"] = field(default_factory=dict)

    @property
    def bases(self) -> tuple[Base, ...]:
        """The leaves that it is relative to."""
        return self.header.bases if self.relation is None else self.relation.bases

    @cached_property
    def depth(self) -> int:
        """0 if it is dense, else 1 more than the deepest base's."""
        below = max((link.depth for link in self.below.values()), default=0)
        return 0 if self.is_dense else 1 + below

    @cached_property
    def reads(self) -> int:
        """How many objects go into it, counted each time that they are read."""
        keys = (base.key for base in self.bases)
        return 1 + sum(self.below[key].reads for key in keys if key is not None)

    @property
    def is_dense(self) -> bool:
        """Whether all of it is here, as it is."""
        return self.header.update == DENSE

    @cached_property
    def held(self) -> tuple[list["Link"], list[int]]:
        """The objects that chunks are taken from, and which of them has each chunk."""
        links: list[Link] = [self]
        while links[-1].header.base is not None:
            links.extend(links[-1].below.values())
        owns = [link.header.own for link in links]
        return links, updates.sources(len(self.header.chunks), owns)


def part_link(folder: str, name: str, part: StoredPart) -> Link:
    """A part of an update as an object that can be read."""
    header = ArrayHeader(part.metadata, part.digest, (), part.dtype, 0.0)
    return Link(f"{folder}/{name}", header, part.dtype, part.shape)


def describes(header: ArrayHeader, key: str, dtype: str, shape: tuple[int, ...] | None) -> bool:
    """Whether a header is of the object at a key, and of this dtype and shape."""
    if header.digest != key.rpartition("/")[2] or header.is_group:
        return False
    if shape is not None and header.lengths != shape:
        return False
    if header.shape is not None:
        return header.dtype == dtype
    return header.metadata.get("data_type") == zarr_dtype(dtype)
