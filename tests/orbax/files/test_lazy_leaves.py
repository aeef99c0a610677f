"""An import holds two leaves at a time, however many there are."""

import mmap
import threading
import weakref

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import vcjax
import vcjax.orbax
from vcjax.errors import TreeError
from vcjax.tree import LazyArray

from ...subprocesses import PATIENCE

pytestmark = [  # about Orbax's own calls
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
    pytest.mark.filterwarnings("ignore:Use `:DeprecationWarning"),
]


def test_a_commit_holds_no_more_than_two_lazy_leaves(repo):
    """Counted, not measured: an array is read once the last but one has gone."""
    size, slots, count = 3_000_000, threading.Semaphore(2), []

    def lazy(number):
        def read():
            # TensorStore's threads let go a little after they are done.
            assert slots.acquire(timeout=PATIENCE), "a third leaf is read, and two are held"
            count.append(number)
            memory = mmap.mmap(-1, 4 * size)  # which dies with the last array that views it
            array = np.frombuffer(memory, np.float32)
            array[:] = number
            weakref.finalize(memory, slots.release)
            return array

        return LazyArray((size,), np.dtype(np.float32), read)

    repo.commit({f"{i}": lazy(i) for i in range(6)})
    assert len(count) == 6
    assert float(repo.restore(paths="4")["4"][-1]) == 4


def test_lazy_leaves_are_leaves_like_any_other(repo):
    values = {"inline": np.ones(3), "packed": np.arange(500), "object": np.ones((300, 300))}
    key = jax.random.key(4)
    lazy = {name: LazyArray(v.shape, v.dtype, lambda v=v: v) for name, v in values.items()}
    first = repo.commit({**lazy, "key": key, "n": 3})
    assert repo.commit({**values, "key": key, "n": 3}).tree == first.tree
    assert repo.commit_async(lazy).result().leaves == 3
    np.testing.assert_array_equal(repo.restore()["packed"], np.arange(500))
    assert {change.status for change in vcjax.diff(lazy, values).changes} == {"unchanged"}
    liar = LazyArray((4,), np.dtype("float32"), lambda: np.ones(3, np.float32))
    with pytest.raises(TreeError, match=r"leaf 'a/liar': float32\[3\] was read") as raised:
        repo.commit({"a": {"liar": liar}})
    assert raised.value.path == "a/liar"


MEMORY = """
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from vcjax.cli import main

def growth(folder, repo):
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert main(["import", "orbax", folder, "--repo=" + repo]) == 0
    return (getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024

growth(sys.argv[1] + "/warm", sys.argv[2] + "/warm")
print("grew", growth(sys.argv[1] + "/large", sys.argv[2] + "/large"))
"""


def test_an_import_takes_two_leaves_and_chunk_buffers(tmp_path, processes):
    leaf = 8 * 2**20
    make = np.random.default_rng(0)
    large = {f"{i:02}": make.integers(0, 255, leaf, np.uint8).reshape(8, -1) for i in range(16)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "warm", {"w": np.ones(2**18)})
        checkpointer.save(tmp_path / "large", large)
    out, _ = processes.python(MEMORY, tmp_path, tmp_path / "repos").finish()
    grew = int(out.split("grew")[1])
    # Orbax has stored each leaf as one chunk, which TensorStore holds encoded and decoded;
    # of ours, of 4 MiB each, a leaf's worth may be on their way. The tree has 16 leaves.
    assert grew < (2 + 3) * leaf
    repo = vcjax.Repository.open(tmp_path / "repos" / "large")
    np.testing.assert_array_equal(repo.restore(paths="07")["07"], large["07"])
