"""Reading stored leaves, or any region of them, through the updates that they stand on.

A dense object is read as it is, a chunk of a difference from the object that holds it,
and what another update expresses is computed by the update, region by region where it
can. Nothing is checked against digests here; whoever asked for a leaf does that.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts

from vcjax import updates
from vcjax.errors import CorruptionError, MissingObjectError, UnknownFormatError, VcjaxError
from vcjax.hashing import chunk_runs, chunk_shape, chunk_slices
from vcjax.hashing.regions import REGION_BYTES, Box, box_of, chunks_in, overlap
from vcjax.history import LeafEntry, Packed
from vcjax.objects import zarr as arrays
from vcjax.objects.header import ArrayHeader, read_headers
from vcjax.objects.layout import HINT, array_errors, group_key, leaf_key
from vcjax.objects.link import Link, describes, part_link
from vcjax.objects.relation import Base, Relation
from vcjax.storage import Store
from vcjax.tree import storage_dtype


@dataclass(frozen=True, eq=False)
class _StoredContent:
    """A base or a part as an update sees it; see `vcjax.updates.Content`."""

    chains: "ChainReader"
    path: str
    link: Link

    @property
    def dtype(self) -> str:
        return self.link.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.link.shape

    def read(self, index: updates.Index | None = None) -> np.ndarray:
        return self.chains.read(self.path, self.link, _box(index, self.shape))


@dataclass(frozen=True, eq=False)
class _PackedContent:
    """A base that lies in a pack; the rows that a region lies in are read alone."""

    pack: _StoredContent
    base: Base
    place: Packed

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self, index: updates.Index | None = None) -> np.ndarray:
        kind, place = storage_dtype(self.dtype), self.place
        if not self.shape:
            span = slice(place.offset, place.offset + place.length)
            return self.pack.read((span,)).view(kind).reshape(())
        (start, stop), *rest = _box(index, self.shape)
        row = kind.itemsize * math.prod(self.shape[1:])
        span = slice(place.offset + start * row, place.offset + stop * row)
        rows = self.pack.read((span,)).view(kind).reshape(stop - start, *self.shape[1:])
        return rows[(slice(None), *_slices(tuple(rest)))]


class ChainReader:
    """Reads objects through what they stand on; keeps what it has learned of them.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store):
        self._store = store
        self._links: dict[str, Link] = {}
        self._groups: dict[str, ArrayHeader] = {}
        self._opened: dict[str, Any] = {}
        self._whole: tuple[str, np.ndarray] | None = None

    def leaf(self, path: str, entry: LeafEntry, header: ArrayHeader | None) -> Link:
        """The leaf object of an entry, with all headers that it takes to read it.

        Args:
            path: leaf path, for messages.
            entry: of a leaf that has an object of its own.
            header: of that object; None if there is none.

        Raises:
            CorruptionError: an object is damaged or gone, or they stand on too many.
        """
        spec = entry.spec
        return self.link(path, leaf_key(entry.digest), spec.dtype, spec.shape, header)

    def link(
        self,
        path: str,
        key: str,
        dtype: str,
        shape: tuple[int, ...] | None,
        header: ArrayHeader | None,
        above: tuple[str, ...] = (),
    ) -> Link:
        """An object, with all headers that it takes to read it; see `leaf`.

        Args:
            shape: of its content; None to take it as it is.
            above: keys of the objects that stand on this one.
        """
        if header is None:
            raise MissingObjectError(
                f"leaf {path!r} is gone: there is no {key}", path=path, hint=HINT
            )
        if not describes(header, key, dtype, shape) or key in above:
            what = "stands on itself" if key in above else "describes something else"
            raise _damaged(path, f"{key}/zarr.json {what}")
        if key in self._links:
            return self._links[key]
        if not header.needs:  # as most; saves a twentieth of the time to restore small leaves
            alone = Link(key, header, dtype, header.lengths, header.relation, key)
            return self._links.setdefault(key, alone)
        if len(above) > updates.MAX_DEPTH:
            raise _damaged(path, f"{above[0]} stands on too many others")
        relation, leaf = header.relation, 0
        if header.group is not None:
            relation, leaf = self._member(path, key, header)
        bases = header.bases if relation is None else relation.bases
        below = self.below(path, bases, (*above, key))
        folder = key if header.group is None else group_key(header.group)
        found = Link(key, header, dtype, header.lengths, relation, folder, leaf, below)
        if found.depth > updates.MAX_DEPTH or found.reads > updates.MAX_READS:
            raise _damaged(path, f"{key} stands on too many others")
        return self._links.setdefault(key, found)

    def _member(self, path: str, key: str, header: ArrayHeader) -> tuple[Relation, int]:
        """How a leaf is expressed that is stored with others, and which of them it is."""
        folder = header.needs[0]
        if folder not in self._groups:
            [group] = self._headers(path, [folder])
            if group is None:
                message = f"leaf {path!r} is gone: {key} is stored in {folder}, which is not there"
                raise MissingObjectError(message, path=path, hint=HINT)
            self._groups[folder] = group
        group = self._groups[folder]
        relation = group.relation
        if (
            relation is None
            or (group.digest, group.update) != (header.group, header.update)
            or key not in relation.members
        ):
            raise _damaged(path, f"{folder}/zarr.json does not have {key}")
        return relation, relation.members.index(key)

    def below(
        self, path: str, bases: Sequence[Base], above: tuple[str, ...] = ()
    ) -> dict[str, Link]:
        """{key: link} of the objects that bases are in; see `link`."""
        stored = {base.key: base for base in bases if base.key is not None}
        found = dict(zip(stored, self._headers(path, list(stored)), strict=True))
        return {
            key: self.link(
                path,
                key,
                base.dtype if base.packed is None else "uint8",
                base.shape if base.packed is None else None,
                found[key],
                above,
            )
            for key, base in stored.items()
        }

    def _headers(self, path: str, keys: Sequence[str]) -> list[ArrayHeader | None]:
        try:
            return read_headers(self._store, keys)
        except VcjaxError as error:
            error.path, error.message = path, f"leaf {path!r}: {error.message}"
            raise

    def read(self, path: str, link: Link, box: Box) -> np.ndarray:
        """A part of a leaf, in an array that the caller owns; from any thread.

        Raises:
            CorruptionError: a chunk is damaged or gone, or an update failed; names both.
        """
        if any(stop > length for (_, stop), length in zip(box, link.shape, strict=True)):
            raise _damaged(path, f"it is said to lie beyond the end of {link.key}")
        buffer = arrays.aligned_buffer(tuple(stop - start for start, stop in box), link.dtype)
        with array_errors(self._store, link.key, path):
            for future in self.start(path, link, buffer, box):
                future.result()
        return buffer

    def start(
        self, path: str, link: Link, buffer: np.ndarray, box: Box | None = None
    ) -> tuple[Any, ...]:
        """Starts filling a buffer with a part of a leaf, by default all; the futures of it.

        What an update computes is there when this returns.
        """
        target = ts.array(arrays.stored_view(buffer, link.dtype))
        if box is None:
            box = _box(None, link.shape)
        elif box:
            target = target.translate_to[tuple(start for start, _ in box)]
        with array_errors(self._store, link.key, path):
            return tuple(self._fill(path, link, target, box))

    def _fill(self, path: str, link: Link, target: Any, box: Box) -> Iterator[Any]:
        if link.is_dense:
            yield _at(target, box).write(_at(self._array(link), box))
        elif link.relation is not None:
            for part in self._computable(path, link, box):
                content = self._computed(path, link, part)
                # Not in the background, or all pieces would be in memory at once.
                _at(target, part).write(arrays.stored_view(content, link.dtype)).result()
        else:
            links, holders = link.held
            wanted = chunks_in(box, link.shape, storage_dtype(link.dtype).itemsize)
            for number, holder in enumerate(links):
                held = [chunk for chunk in wanted if holders[chunk] == number]
                for part in _runs(link, held, box):
                    if holder.relation is None:
                        yield _at(target, part).write(_at(self._array(holder), part))
                    else:
                        yield from self._fill(path, holder, target, part)

    def _array(self, link: Link) -> Any:
        """The TensorStore array that holds chunks of a dense object or a difference."""
        key = link.header.array_key(link.key)
        if key not in self._opened:
            opened = arrays.open_array(self._store, key, link.header.metadata).result()
            self._opened[key] = opened
        return self._opened[key]

    def _computable(self, path: str, link: Link, box: Box) -> list[Box]:
        """A part of a leaf in pieces that an update is to compute one by one."""
        if not self._update(path, link).by_regions or not box:
            return [box]
        width = storage_dtype(link.dtype).itemsize
        most = max(1, REGION_BYTES // (width * math.prod(chunk_shape(link.shape, width))))
        return list(_runs(link, chunks_in(box, link.shape, width), box, most))

    def _computed(self, path: str, link: Link, box: Box) -> np.ndarray:
        """A part of a leaf that an update expresses."""
        if self._update(path, link).by_regions:
            return self._applied(path, link, updates.Region(link.leaf, _slices(box)), box)
        kept = self._whole  # the parts of such a leaf are mostly asked for one after the other
        if kept is None or kept[0] != link.key:
            whole = self._applied(path, link, updates.Region(link.leaf), _box(None, link.shape))
            kept = self._whole = (link.key, whole)
        return np.ascontiguousarray(kept[1][_slices(box)]).reshape([b - a for a, b in box])

    def _applied(self, path: str, link: Link, region: updates.Region, box: Box) -> np.ndarray:
        """What an update gives, if it is of the dtype and shape that it must be."""
        update, relation = self._update(path, link), link.relation
        assert relation is not None
        bases = tuple(self._base(path, link, base) for base in relation.bases)
        parts = {
            name: _StoredContent(self, path, part_link(link.folder, name, part))
            for name, part in relation.parts.items()
        }
        given = updates.Parts(parts, relation.parameters)
        try:
            result = np.asarray(update.apply(bases, given, region))
        except (VcjaxError, MemoryError):
            raise
        except Exception as error:  # a plug-in may raise anything
            raise _failed(path, link, f"fails: {type(error).__name__}: {error}") from error
        wanted = storage_dtype(link.dtype), tuple(stop - start for start, stop in box)
        if (result.dtype, result.shape) != wanted:
            told = f"{result.dtype}{list(result.shape)}, not {wanted[0]}{list(wanted[1])}"
            raise _failed(path, link, f"gives {told}")
        return np.asarray(result, order="C")

    def _update(self, path: str, link: Link) -> updates.Update:
        name = link.header.update
        try:
            return updates.update_named(name)
        except UnknownFormatError as error:
            package = link.relation.package if link.relation else ""
            written = f"; what wrote it was {package}" if package else ""
            raise UnknownFormatError(
                f"leaf {path!r}: {link.key} is stored as {name!r}: {error.message}",
                path=path,
                hint=f"{error.hint}{written}",
            ) from error

    def _base(self, path: str, link: Link, base: Base) -> updates.Content:
        if base.inline is not None:
            data = np.frombuffer(base.inline, storage_dtype(base.dtype))
            return updates.ArrayContent(data.reshape(base.shape), base.dtype)
        content = _StoredContent(self, path, link.below[base.key or ""])
        return content if base.packed is None else _PackedContent(content, base, base.packed)


def _damaged(path: str, what: str) -> CorruptionError:
    return CorruptionError(f"leaf {path!r} is damaged: {what}", path=path, hint=HINT)


def _failed(path: str, link: Link, how: str) -> CorruptionError:
    package = link.relation.package if link.relation else ""
    return CorruptionError(
        f"leaf {path!r} cannot be rebuilt: the update {link.header.update!r} of {link.key} {how}",
        path=path,
        hint=f"see that the package that provides it is the one that wrote it ({package or '?'}); "
        f"else {HINT}",
    )


def _runs(link: Link, chunks: Sequence[int], box: Box, most: int | None = None) -> Iterator[Box]:
    """What some chunks of a leaf have in common with a part of it."""
    width = storage_dtype(link.dtype).itemsize
    for first, last in chunk_runs(link.shape, width, chunks, most):
        run = box_of(chunk_slices(link.shape, width, first, last), link.shape)
        part = overlap(box, run)
        if part is not None:
            yield part


def _box(index: updates.Index | None, shape: tuple[int, ...]) -> Box:
    return tuple((0, n) for n in shape) if index is None else box_of(index, shape)


def _slices(box: Box) -> updates.Index:
    return tuple(slice(start, stop) for start, stop in box)


def _at(array: Any, box: Box) -> Any:
    """A part of a TensorStore array; of one that is all of it, or has no axes, the array."""
    sizes = tuple(stop - start for start, stop in box)
    return array if array.shape == sizes else array[_slices(box)]
