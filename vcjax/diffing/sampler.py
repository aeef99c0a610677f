"""How alike two leaves are, judged from a sample of either."""

from functools import cache

import numpy as np
from jaxtyping import Float64

from vcjax.diffing.contents import Content
from vcjax.tree import is_inexact, storage_dtype

SAMPLE = 4096
"""Elements of a sample, spread over the first chunk of a leaf."""


class Sampler:
    """Correlations of leaves of two sides, from their first chunks; each is read once.

    Args:
        old: one side.
        new: the other.
        dtypes: {leaf path: dtype name} of the array leaves of each.
    """

    def __init__(self, old: Content, new: Content, dtypes: tuple[dict[str, str], dict[str, str]]):
        self._sides = (old, new)
        self._dtypes = dtypes
        self._sample = cache(self._read)

    def __call__(self, old: str, new: str) -> float | None:
        """The correlation of two leaves of one shape, at least 0; None where it says nothing.

        It is that of the numbers about their mean: norm scales, which are all near
        one, would otherwise all be alike. Constant leaves say nothing.
        """
        one, other = self._sample(0, old), self._sample(1, new)
        if one is None or other is None:
            return None
        size = min(one.size, other.size)
        a, b = one[:size] - one[:size].mean(), other[:size] - other[:size].mean()
        scale = np.linalg.norm(a) * np.linalg.norm(b)
        return max(0.0, float(a @ b / scale)) if scale > 0 else None

    def _read(self, side: int, path: str) -> Float64[np.ndarray, " sample"] | None:
        dtype = self._dtypes[side].get(path)
        if dtype is None or not is_inexact(dtype) or storage_dtype(dtype).kind == "c":
            return None
        part = self._sides[side].read(path, 0, 0)
        values = part[:: max(1, part.size // SAMPLE)][:SAMPLE].astype(np.float64)
        return values if np.isfinite(values).all() else None
