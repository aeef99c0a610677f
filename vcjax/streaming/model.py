"""What a merge takes in: commits, checkpoint files and folders, read leaf by leaf."""

import math
import os
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from vcjax import formats, tree
from vcjax.errors import MergeError
from vcjax.formats import sharded
from vcjax.hashing import chunk_ranges
from vcjax.hashing.digests import decode_value
from vcjax.history import Commit, LeafEntry, Manifest
from vcjax.objects import ObjectStore, PartialReader

WHOLE_BYTES = 16 * 1024 * 1024
"""Up to this size a stored leaf is read once and then cut; a larger one is read in parts, once
per pass over it, as a file would be."""


@dataclass(frozen=True, eq=False)
class Model:
    """A tree whose arrays are read when they are needed.

    Attributes:
        name: as the user wrote it.
        root: as `vcjax.tree.flatten` gives it; leaves may be lazy.
        origin: where it is from, JSON types, for provenance.
        fingerprint: changes when the content does.
        metadata: of a file, what its format keeps beside the tree.
    """

    name: str
    root: Any
    origin: Mapping[str, Any]
    fingerprint: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def leaves(self) -> dict[str, tree.Leaf]:
        """{leaf path: leaf}."""
        return tree.leaf_dict(self.root)

    @cached_property
    def specs(self) -> dict[str, tree.LeafSpec]:
        """{leaf path: spec}."""
        return {path: leaf.spec for path, leaf in self.leaves.items()}


def of_commit(
    commit: Commit, manifest: Manifest, objects: ObjectStore, name: str | None = None
) -> Model:
    """The model that a commit holds."""
    root = tree.map_leaves(lambda path, entry: stored_leaf(path, entry, objects), manifest.root)
    origin = {"commit": commit.digest}
    return Model(name or commit.digest[:8], root, origin, f"tree {commit.tree}")


def stored_leaf(path: str, entry: LeafEntry, objects: ObjectStore) -> tree.Leaf:
    """A leaf of a commit; an array is read, and checked against its digest, when it is needed."""
    spec = entry.spec
    if spec.is_value:
        return tree.Leaf(spec, decode_value(spec.dtype, entry.inline))
    kind = tree.storage_dtype(spec.dtype)
    data = tree.LazyArray(spec.shape, kind, partial(_read_one, objects, path, entry))
    if data.nbytes > WHOLE_BYTES and entry.is_object and kind.itemsize == tree.itemsize(spec.dtype):
        data = replace(data, read_part=StoredParts(objects, path, entry))
    return tree.Leaf(spec, data)


def _read_one(objects: ObjectStore, path: str, entry: LeafEntry) -> np.ndarray:
    [(_, array)] = objects.read({path: entry})
    return array


class StoredParts:
    """Reads a stored leaf in parts: the chunks that each part lies in, checked.

    The last chunk is kept, as the next part usually begins in it.
    """

    def __init__(self, objects: ObjectStore, path: str, entry: LeafEntry):
        self._objects, self._path, self._entry = objects, path, entry
        self._size = math.prod(entry.spec.shape)
        self._kept: tuple[int, np.ndarray] | None = None  # number of the chunk, content

    @cached_property
    def _reader(self) -> PartialReader:
        return self._objects.open_parts({self._path: self._entry})

    @cached_property
    def _starts(self) -> list[int]:
        shape, width = self._entry.spec.shape, tree.itemsize(self._entry.spec.dtype)
        return [start // width for start, _ in chunk_ranges(shape, width)]

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Elements in C order, flat."""
        first = bisect_right(self._starts, start) - 1
        last = bisect_left(self._starts, stop) - 1
        parts = [self._chunk(number) for number in range(first, last + 1)]
        # Passes begin at the first chunk again; between merges of leaves nothing is held.
        is_end = stop == self._size
        self._kept = None if is_end else (last, parts[-1])
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        begin = self._starts[first]
        return flat[start - begin : stop - begin]

    def _chunk(self, number: int) -> np.ndarray:
        kept = self._kept
        if kept is not None and kept[0] == number:
            return kept[1]
        return self._reader.read(self._path, number, number)


def of_file(path: str | os.PathLike[str]) -> Model:
    """The model in a checkpoint file, or in a folder of safetensors in Hugging Face naming.

    safetensors are read as they are needed; other formats may be read at once.

    Raises:
        FormatError: it is of no known format, or damaged.
        StorageError: it is missing or cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        checkpoint, parts = sharded.read_folder(place), sharded.shard_files(place)
    else:
        checkpoint, parts = formats.read(place), [place]
    stats = [(part.name, part.stat()) for part in parts]
    marks = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return Model(
        str(path),
        _flat(checkpoint.tree),
        {"file": str(path)},
        "; ".join([str(place.resolve()), *marks]),
        checkpoint.metadata,
    )


def _flat(checkpoint: Any) -> Any:
    """`tree.flatten`, which takes 0.6 s to import, of a flat dict of arrays without it."""
    plain = isinstance(checkpoint, dict) and all(
        isinstance(name, str) and isinstance(array, np.ndarray)
        for name, array in checkpoint.items()
    )
    if not plain:
        return tree.flatten(checkpoint)
    names = tuple(sorted(checkpoint))
    leaves = (tree.make_leaf(checkpoint[name], name) for name in names)
    return tree.Node("dict", names, tuple(leaves))


def of_tree(root: Any, name: str = "a tree", origin: Mapping[str, Any] | None = None) -> Model:
    """The model that a PyTree in memory, or one of lazy leaves, is."""
    # Nobody can tell later whether it is the same: such a merge is never continued.
    mark = f"in memory {secrets.token_hex(16)}"
    return Model(name, tree.flatten(root), origin or {"tree": name}, mark)


def order(model: Model) -> list[str]:
    """The leaf paths of a model as they lie in memory, and so in a mapped file."""
    leaves = model.leaves

    def address(path: str) -> int:
        data = leaves[path].data
        return data.__array_interface__["data"][0] if isinstance(data, np.ndarray) else 0

    return sorted(leaves, key=address)


def checked(given: Any, number: int) -> Model:
    """A model, from one or from the path of a file.

    Raises:
        MergeError: it is neither.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, str | os.PathLike):
        return of_file(given)
    raise MergeError(
        f"model {number} is {type(given).__name__}, neither a model nor a path",
        hint="give paths, revisions, or what vcjax.streaming.model makes",
    )
