"""BLAKE3 in JAX against the official test vectors and the reference package."""

import blake3 as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcjax.hashing import blake3, blake3_device

from ..compiled import clear_programs, program_count

LENGTHS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2048, 2049),
    *(3072, 3073, 4096, 4097, 5120, 5121, 6144, 6145, 7168, 7169, 8192, 8193, 16384, 31744),
    102400,
)

# test_vectors.json of the BLAKE3 team, field "hash", first 32 bytes.
OFFICIAL = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


def official_input(length: int) -> np.ndarray:
    return (np.arange(length) % 251).astype(np.uint8)


def in_jax(data: np.ndarray) -> str:
    return bytes(np.asarray(blake3_device(jnp.asarray(data)))).hex()


@pytest.mark.parametrize("length", OFFICIAL)
def test_official_digests(length):
    assert in_jax(official_input(length)) == OFFICIAL[length]


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_of_the_official_vectors(length):
    data = official_input(length)
    assert in_jax(data) == reference.blake3(data.tobytes()).hexdigest()


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("length", [0, 2049])
def test_under_jit_and_x64(length, x64):
    data = official_input(length)
    with jax.enable_x64(x64):
        digest = jax.jit(blake3_device)(jnp.asarray(data))
        eager = blake3_device(jnp.asarray(data))
    assert digest.shape == (32,)
    assert digest.dtype == jnp.uint8
    assert bytes(np.asarray(digest)) == reference.blake3(data.tobytes()).digest()
    np.testing.assert_array_equal(digest, eager)


def test_lengths_share_compiled_programs():
    clear_programs(blake3._digest_padded)
    for length in LENGTHS:
        in_jax(official_input(length))
    assert program_count(blake3._digest_padded) == 2  # 16 and 128 lanes


def test_both_forms_of_the_compression_function_agree():
    rng = np.random.default_rng(0)

    def words(*shape):
        return jnp.asarray(rng.integers(0, 2**32, shape, np.uint32))

    arguments = (tuple(words(8, 5)), tuple(words(16, 5)), words(5), words(5), words(5))
    unrolled = blake3.compress_unrolled(*arguments)
    rolled = blake3.compress_rolled(*arguments)
    np.testing.assert_array_equal(jnp.stack(unrolled), jnp.stack(rolled))


SLOTS = 64
_hash_tile = jax.jit(blake3.hash_tile, static_argnames=("levels", "unrolled"))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(
        st.one_of(
            st.integers(0, 4096),
            st.integers(0, 64 * 1024),
            st.integers(1, 60).map(lambda lanes: 1024 * lanes),
        ),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_of_many_messages(sizes, seed):
    rng = np.random.default_rng(seed)
    tile = rng.integers(0, 2**32, (SLOTS * 4096), np.uint32).view(np.uint8).reshape(SLOTS, -1)
    table = rng.integers(0, 2**32, (3, SLOTS), np.uint32)  # unused slots hold anything
    slot, expected = 0, {}
    for size in sizes:
        lanes = blake3.lanes_of(size)
        stop = slot + -(-lanes // blake3.SLOT_LANES)
        if stop > SLOTS:
            break
        data = rng.integers(0, 256, size, np.uint8)
        padded = np.zeros((stop - slot) * tile.shape[1], np.uint8)
        padded[:size] = data
        tile[slot:stop] = padded.reshape(stop - slot, -1)
        table[0, slot:stop] = np.arange(stop - slot)
        table[1, slot:stop] = lanes
        table[2, slot:stop] = size - 1024 * (lanes - 1)
        expected[slot] = reference.blake3(data.tobytes()).digest()
        slot = stop
    words = jnp.asarray(tile.reshape(-1, 1024).view(np.uint32))
    digests = np.asarray(_hash_tile(blake3.to_tile(words), table, levels=10, unrolled=False))
    found = {slot: np.ascontiguousarray(digests[:, slot]).tobytes() for slot in expected}
    assert found == expected
