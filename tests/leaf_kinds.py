"""A tree with a leaf for each way to store one, and one leaf that all versions share."""

import numpy as np


def tree(value):
    """One leaf in the manifest, one in a pack, one of its own, one that never changes."""
    return {
        "inline": np.full(2, value),
        "packed": np.full(2_000, value, np.float32),
        "own": np.full(20_000, value, np.float32),
        "fixed": np.full(20_000, -1, np.float32),
    }


def assert_restores(restored, value):
    """The tree of this value came back."""
    for name, expected in tree(value).items():
        np.testing.assert_array_equal(restored[name], expected)
