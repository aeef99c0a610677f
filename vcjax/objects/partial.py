"""Reading parts of leaves: runs of chunks, each checked against its own digest."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import blake3
import numpy as np
import tensorstore as ts

from vcjax import updates
from vcjax.errors import CorruptionError
from vcjax.hashing import chunk_count, chunk_ranges, chunk_runs, chunk_slices, digest_array
from vcjax.history import LeafEntry
from vcjax.objects import arrays, reading
from vcjax.objects.arrays import ArrayHeader
from vcjax.objects.layout import HINT, array_errors, leaf_key, place_of
from vcjax.objects.writing import read_headers
from vcjax.storage import Store
from vcjax.tree import itemsize


class PartialReader:
    """Some leaves that have an object of their own, opened so that parts of them can be read.

    Args:
        store: where they are.
        entries: {leaf path: entry} of leaves for which `LeafEntry.is_object` holds.

    Raises:
        CorruptionError: an object is damaged or gone; names its path.
    """

    def __init__(self, store: Store, entries: Mapping[str, LeafEntry]):
        self._store = store
        self._entries = entries
        keys = [leaf_key(entry.digest) for entry in entries.values()]
        headers = read_headers(store, keys)
        self._chains: dict[str, list[ArrayHeader]] = {
            path: reading.chain_of(store, path, entry, header)
            for (path, entry), header in zip(entries.items(), headers, strict=True)
        }
        self._opened = lru_cache(maxsize=None)(self._open)

    def read(self, path: str, first: int, last: int) -> np.ndarray:
        """Chunks `first` … `last` of a leaf as a flat array; may be called from several threads.

        They must lie in a row along the axis that is cut (`vcjax.hashing.chunk_runs`).

        Raises:
            CorruptionError: a chunk is damaged or gone; names the leaf path and the object.
        """
        entry = self._entries[path]
        shape, width = entry.spec.shape, itemsize(entry.spec.dtype)
        region = chunk_slices(shape, width, first, last)
        lengths = tuple(part.stop - part.start for part in region)
        buffer = arrays.aligned_buffer(lengths, entry.spec.dtype)
        chain = self._chains[path]
        with array_errors(self._store, leaf_key(entry.digest), path):
            target = ts.array(arrays.stored_view(buffer, entry.spec.dtype))
            target = target.translate_to[tuple(part.start for part in region)] if shape else target
            opened = self._opened(path)
            futures = []
            if len(chain) == 1:
                futures.append(target.write(opened[0][region] if shape else opened[0]))
            else:
                count = chunk_count(shape, width)
                holders = updates.sources(count, [head.own for head in chain])
                for at, source in enumerate(opened):
                    held = [i for i in range(first, last + 1) if holders[i] == at]
                    for run in chunk_runs(shape, width, held):
                        part = chunk_slices(shape, width, *run)
                        futures.append(target[part].write(source[part]))
            for future in futures:
                future.result()
        flat = buffer.reshape(-1)
        self._check(path, entry, flat if len(entry.chunks) > 1 else buffer, first, last)
        return flat

    def _open(self, path: str) -> list[Any]:
        store = self._store
        return [
            arrays.open_array(store, head.array_key(leaf_key(head.digest)), head.metadata).result()
            for head in self._chains[path]
        ]

    def _check(self, path: str, entry: LeafEntry, data: np.ndarray, first: int, last: int) -> None:
        shape, width = entry.spec.shape, itemsize(entry.spec.dtype)
        if len(entry.chunks) < 2:
            whole = digest_array(entry.spec.dtype, data.reshape(shape)).leaf.hex() == entry.digest
            broken = [] if whole else [0]
        else:
            spans = list(chunk_ranges(shape, width))
            view, begin = data.view(np.uint8).data, spans[first][0]
            broken = [
                index
                for index in range(first, last + 1)
                if blake3.blake3(view[spans[index][0] - begin : spans[index][1] - begin]).digest()
                != entry.chunks[index]
            ]
        if broken:
            raise CorruptionError(
                f"leaf {path!r} is damaged: chunk {broken[0]} of {place_of(entry)} "
                "does not have its digest",
                path=path,
                hint=HINT,
            )
