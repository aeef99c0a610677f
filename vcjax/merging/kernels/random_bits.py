"""Random numbers by counting: a hash of (key, leaf path, model, row, element).

The number an element gets depends on where it is in the leaf and on nothing
else, so it does not change with sharding, slicing or the order of leaves. The
mixing function is the 32-bit finaliser of MurmurHash3 (Appleby, 2011), applied
twice with two key words: once with one key would make the numbers of two models
permutations of each other.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

from vcjax.merging.shapes import Coefficient, Mask, Place, Seed

GOLDEN = np.uint32(0x9E3779B9)  # 2^32 / golden ratio, odd: spreads consecutive counters


def mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """MurmurHash3's `fmix32`: a bijection of uint32 in which each bit affects all."""
    h = h ^ (h >> 16)
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> 13)
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def path_words(path: str) -> Seed:
    """`uint32[2]` for a leaf path (BLAKE2b)."""
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    return jnp.asarray(np.frombuffer(digest, "<u4"))


@jax.jit
def leaf_seed(key: jax.Array, words: Seed) -> Seed:
    """`uint32[2]` of a PRNG key and the words of a leaf path."""
    drawn = jax.random.bits(key, (2,), jnp.uint32)
    crossed = mix(drawn ^ words)
    return mix(crossed + GOLDEN * crossed[::-1])


def flat_index(shape: tuple[int, ...], row: Place = 0) -> UInt32[Array, "..."]:
    """C-order position of each element, as uint32, made of iotas so that it shards.

    Args:
        shape: of the leaf or the slice of it.
        row: position of the slice's first row.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in range(len(shape) - 1, -1, -1):
        step = lax.broadcasted_iota(jnp.uint32, shape, axis)
        if axis == 0:
            step = step + jnp.asarray(row, jnp.uint32)
        index = index + step * np.uint32(stride)
        stride *= shape[axis]
    return index


def random_bits(
    seed: Seed | None, model: Place, shape: tuple[int, ...], row: Place = 0
) -> UInt32[Array, "..."]:
    """Uniform uint32 of this shape for one model of a leaf.

    Args:
        seed: `uint32[2]` from `leaf_seed`.
        model: position of the model.
        shape: of the leaf or a slice of it along its first axis.
        row: position of the slice's first row.
    """
    assert seed is not None, "a step that draws random numbers says so: Transform(random=True)"
    number = jnp.asarray(model, jnp.uint32)
    low = mix(seed[0] + GOLDEN * (number + np.uint32(1)))
    high = mix(seed[1] ^ low)
    # Row and column are hashed apart, so leaves of more than 2^32 elements do not repeat.
    inner = flat_index((1, *shape[1:])) if shape else jnp.zeros((), jnp.uint32)
    rows = jnp.zeros((), jnp.uint32)
    if shape:
        rows = lax.broadcasted_iota(jnp.uint32, (shape[0],) + (1,) * (len(shape) - 1), 0)
        rows = rows + jnp.asarray(row, jnp.uint32)
    return mix(mix(rows * GOLDEN + low) + mix(inner ^ high))


def bernoulli(bits: UInt32[Array, "*leaf"], probability: Coefficient) -> Mask:
    """Where uniform `bits` fall below a probability (in steps of 2^-24; 1 is always)."""
    limit = jnp.round(jnp.asarray(probability, jnp.float32) * np.float32(2**24))
    return (bits >> 8) < limit.astype(jnp.uint32)
