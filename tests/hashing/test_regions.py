"""Regions: every chunk once, each a contiguous range of the bytes, whatever the shards."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcjax.hashing import grid
from vcjax.hashing.regions import Region, chunk_box, chunk_boxes, chunks_in, overlap, regions


def cuts(length: int):
    """Where one axis is cut into shards, unevenly."""
    return st.lists(st.integers(1, max(1, length - 1)), max_size=3).map(
        lambda inner: sorted({0, length, *(cut for cut in inner if cut < length)})
    )


@st.composite
def sharded_shapes(draw):
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    boxes = [()]
    for length in shape:
        edges = draw(cuts(length))
        spans = list(itertools.pairwise(edges))
        boxes = [(*box, span) for box in boxes for span in spans]
    return shape, tuple(boxes)


@pytest.mark.usefixtures("small_chunks")
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the same for all examples
)
@given(case=sharded_shapes(), itemsize=st.sampled_from([1, 2, 4, 8]))
def test_regions_are_the_canonical_bytes_in_order(case, itemsize):
    shape, shards = case
    array = np.arange(math.prod(shape), dtype=f"u{itemsize}")
    array = array.reshape(shape)
    found = regions(shape, itemsize, shards)
    assert sum(region.chunks for region in found) == grid.chunk_count(shape, itemsize)
    data = b"".join(array[tuple(slice(*span) for span in r.box)].tobytes() for r in found)
    assert data == array.tobytes()
    for region in found:
        holding = [i for i, shard in enumerate(shards) if overlap(shard, region.box) == region.box]
        assert list(region.holders) == holding
        sizes = [stop - start for start, stop in grid.chunk_ranges(shape, itemsize)]
        mine = sizes[region.first : region.first + region.chunks]
        assert sum(mine) == itemsize * math.prod(region.shape)
        assert len(set(mine[:-1])) <= 1
        assert mine[-1] <= mine[0]


def test_whole_chunks_stay_on_their_shard():
    shards = tuple(((start, start + 16), (0, 65536)) for start in range(0, 64, 16))
    found = regions((64, 65536), 4, shards)
    assert [(region.chunks, region.holders) for region in found] == [(1, (i,)) for i in range(4)]


def test_chunks_across_shards_have_no_holder():
    found = regions((64, 65536), 4, (((0, 64), (0, 32768)), ((0, 64), (32768, 65536))))
    assert found == (Region(0, 4, ((0, 64), (0, 65536)), ()),)


@pytest.mark.usefixtures("small_chunks")
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=st.lists(st.integers(0, 40), max_size=4).map(tuple),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    data=st.data(),
)
def test_the_chunks_that_a_part_lies_in(shape, itemsize, data):
    box = tuple(
        tuple(sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape
    )
    count = grid.chunk_count(shape, itemsize)
    boxes = [chunk_box(number, shape, itemsize) for number in range(count)]
    expected = [number for number, chunk in enumerate(boxes) if overlap(chunk, box) is not None]
    assert chunks_in(box, shape, itemsize) == expected
    array = np.zeros(shape, int)
    for part in chunk_boxes(shape, itemsize):
        array[tuple(slice(*span) for span in part)] += 1
    assert (array == 1).all()
