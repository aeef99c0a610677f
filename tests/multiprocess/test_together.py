"""Several processes save and restore one tree: two of two devices, four of one."""

import numpy as np
import pytest

import vcjax
from vcjax.hashing import tree_digests

SHAPES = {2: [4, 1], 4: [2, 2]}


@pytest.fixture(scope="module")
def two(start):
    return start(2, 2)


def test_it(two, tmp_path):
    url = str(tmp_path / "repo")
    print(two.call("probe"))
    two.call("init", url=url)
    print(two.call("commit", url=url, shape=[4, 1]))
    print(two.call("restore", url=url, shape=[2, 2]))
