"""Remembered digests: of what cannot change, for as long as it lives."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import tree
from vcjax.hashing import DigestMemo, digest_leaves, leaves
from vcjax.hashing.memo import cannot_change


def leaf(data) -> dict[str, tree.Leaf]:
    return {"w": tree.make_leaf(data)}


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many leaves each call digested on the host."""
    calls: list[int] = []
    original = leaves.digest_arrays

    def digest_arrays(items):
        items = list(items)
        calls.append(len(items))
        return original(items)

    monkeypatch.setattr(leaves, "digest_arrays", digest_arrays)
    return calls


def test_an_unchanged_object_is_digested_once(counted):
    memo = DigestMemo(eligible=lambda array: True)
    model = leaf(jnp.arange(10) * 2)
    first = digest_leaves(model, memo=memo)
    assert digest_leaves(model, memo=memo) == first
    assert counted == [1]
    equal = leaf(jnp.arange(10) * 2)
    assert digest_leaves(equal, memo=memo) == first
    assert counted == [1, 1]


def test_changed_numpy_memory_under_a_jax_array_is_seen():
    memo = DigestMemo()
    raw = np.zeros(1 << 18, np.uint8)
    start = -raw.ctypes.data % 64  # what JAX takes over must be aligned
    buffer = raw[start : start + (1 << 17)].view(np.float32)
    aliases = []
    for make in (jnp.asarray, jax.device_put, jnp.from_dlpack):
        array = make(buffer)
        before = digest_leaves(leaf(array), memo=memo)
        buffer += 1
        aliases.append(bool(np.asarray(array)[0] == buffer[0]))
        after = digest_leaves(leaf(array), memo=memo)
        assert (before != after) == aliases[-1]
    assert any(aliases)  # else this test shows nothing
    assert len(memo) == 0


def test_numpy_arrays_are_never_remembered():
    memo = DigestMemo(eligible=lambda array: True)
    array = np.zeros(3)
    before = digest_leaves(leaf(array), memo=memo)
    array[0] = 1
    assert digest_leaves(leaf(array), memo=memo) != before
    assert len(memo) == 0


def test_cpu_arrays_may_change():
    assert not cannot_change(jnp.arange(3) + 1)


def test_entries_go_with_their_objects():
    memo = DigestMemo(eligible=lambda array: True)
    for number in range(50):  # ids are used again
        array = jnp.full(3, number) + 0
        digest = digest_leaves(leaf(array), memo=memo)
        assert digest == digest_leaves(leaf(np.asarray(array)))
        del array
    gc.collect()
    assert len(memo) == 0


def test_deleted_arrays_are_forgotten():
    memo = DigestMemo(eligible=lambda array: True)
    array = jnp.arange(3) + 1
    digest_leaves(leaf(array), memo=memo)
    assert memo.get("int32", array) is not None
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert array.is_deleted()
    assert memo.get("int32", array) is None


def test_the_dtype_name_counts():
    memo = DigestMemo(eligible=lambda array: True)
    array = jnp.zeros(2, jnp.uint32)
    key = {"w": tree.Leaf(tree.LeafSpec("key<threefry2x32>", (2,)), array)}
    assert digest_leaves(leaf(array), memo=memo) != digest_leaves(key, memo=memo)
