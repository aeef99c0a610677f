"""The parts of leaves that this process owns, brought to its host memory."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from vcjax import tree
from vcjax.hashing import grid
from vcjax.hashing.host import bytes_view, digest_spans
from vcjax.hashing.regions import Box, box_of, overlap
from vcjax.processes.exchange import exchange
from vcjax.processes.ownership import Share, Transfer, shares


@dataclass(frozen=True, eq=False)
class Part:
    """Neighbouring chunks of a leaf, with their content.

    Attributes:
        first: number of the first chunk.
        chunks: how many.
        box: the part of the leaf that they are.
        data: its canonical host array; a view of the leaf's memory where there can be one.
    """

    first: int
    chunks: int
    box: Box
    data: np.ndarray


def own_parts(
    leaves: Mapping[str, tree.Leaf], sole_bytes: int, timeout_s: float
) -> dict[str, list[Part]]:
    """What this process owns of arrays that lie on the devices of several processes.

    All processes must call this together, with the same leaves in the same order:
    chunks that lie across the shards of several processes are exchanged between
    their devices. No process gets more than what it owns.

    Args:
        leaves: by leaf path; arrays with `vcjax.tree.is_spanning` data.
        sole_bytes: leaves smaller than this belong to process 0 as a whole.
        timeout_s: as for `exchange`.

    Returns:
        By leaf path; nothing for leaves of which this process owns nothing.
    """
    me = jax.process_index()
    load: dict[int, int] = defaultdict(int)
    wanted: list[tuple[str, Share, list[int]]] = []
    transfers: list[Transfer] = []
    senders: list[str] = []
    sizes: list[int] = []
    for path, leaf in leaves.items():
        shape, width = leaf.spec.shape, tree.itemsize(leaf.spec.dtype)
        sole = 0 if width * math.prod(shape) < sole_bytes else None
        for share in shares(shape, width, _holders(leaf), load, sole):
            numbers = list(range(len(transfers), len(transfers) + len(share.transfers)))
            for transfer in share.transfers:
                transfers.append(transfer)
                senders.append(path)
                sizes.append(width * math.prod(stop - start for start, stop in transfer.box))
            if share.owner == me:
                wanted.append((path, share, numbers))

    def content(number: int) -> np.ndarray:
        leaf, box = leaves[senders[number]], transfers[number].box
        return _cut(leaf, box).reshape(-1).view(np.uint8)

    received = exchange(transfers, sizes, content, timeout_s)
    parts: dict[str, list[Part]] = {}
    for path, share, numbers in wanted:
        pieces = [(transfers[number].box, received.pop(number)) for number in numbers]
        region = share.region
        data = _assembled(leaves[path], region.box, pieces)
        parts.setdefault(path, []).append(Part(region.first, region.chunks, region.box, data))
    return parts


def whole_part(leaf: tree.Leaf) -> list[Part]:
    """A leaf that this process holds, as one part."""
    data = tree.canonical(leaf)
    count = grid.chunk_count(data.shape, data.dtype.itemsize)
    return [Part(0, count, tuple((0, length) for length in data.shape), data)] if count else []


def _holders(leaf: tree.Leaf) -> dict[Box, list[int]]:
    """The processes that hold each part of a leaf, in the same order on every process."""
    shape = leaf.spec.shape
    indices = leaf.data.sharding.devices_indices_map(shape)
    found: dict[Box, list[int]] = {}
    for device in sorted(indices, key=lambda device: device.id):
        box = box_of(indices[device], shape)
        processes = found.setdefault(box, [])
        if device.process_index not in processes:
            processes.append(device.process_index)
    return found


def _shards(leaf: tree.Leaf) -> Iterator[tuple[Box, jax.Array]]:
    for shard in leaf.data.addressable_shards:
        yield box_of(shard.index, leaf.spec.shape), shard.data


def _cut(leaf: tree.Leaf, box: Box) -> np.ndarray:
    """A part of a leaf that one shard here holds."""
    for held, data in _shards(leaf):
        if overlap(held, box) == box:
            starts = [start for start, _ in held]
            region = tuple(
                slice(start - at, stop - at) for (start, stop), at in zip(box, starts, strict=True)
            )
            return tree.canonical(tree.Leaf(leaf.spec, data), region)
    raise AssertionError("this process sends only what it holds")


def _assembled(leaf: tree.Leaf, box: Box, pieces: Sequence[tuple[Box, np.ndarray]]) -> np.ndarray:
    """A part of a leaf from the shards here and from pieces that were received."""
    mine = {held: overlap(held, box) for held, _ in _shards(leaf)}
    if any(part == box for part in mine.values()):
        return _cut(leaf, box)
    dtype = tree.storage_dtype(leaf.spec.dtype)
    whole = np.empty([stop - start for start, stop in box], dtype)

    def paste(part: Box, data: np.ndarray) -> None:
        index = tuple(
            slice(a - begin, b - begin) for (a, b), (begin, _) in zip(part, box, strict=True)
        )
        whole[index] = data

    for part in {part for part in mine.values() if part is not None}:
        paste(part, _cut(leaf, part))
    for part, data in pieces:
        paste(part, data.view(dtype).reshape([stop - start for start, stop in part]))
    return whole


def chunk_digests(spec: tree.LeafSpec, parts: Sequence[Part]) -> list[bytes]:
    """The digests of the chunks of some parts of one leaf, in order, by all cores."""
    width = tree.itemsize(spec.dtype)
    full = width * math.prod(grid.chunk_shape(spec.shape, width))  # the last may have fewer
    spans = [
        (bytes_view(part.data), start, min(start + full, part.data.nbytes))
        for part in parts
        for start in range(0, part.data.nbytes, full)
    ]
    return digest_spans(spans)
