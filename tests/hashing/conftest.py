"""Small chunks, so that small arrays have many."""

from collections.abc import Iterator

import pytest

from vcjax.hashing import grid, regions

_CACHED = (grid._cut_axis, grid.chunk_shape, regions.regions)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A chunk grid of 4 KiB, and regions of 16 KiB."""
    monkeypatch.setattr(grid, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(regions, "REGION_BYTES", 16384)
    for function in _CACHED:
        function.cache_clear()
    yield
    for function in _CACHED:
        function.cache_clear()
