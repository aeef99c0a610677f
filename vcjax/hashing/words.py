"""The canonical bytes of arrays as words, made on the device that holds them."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Shaped, UInt32


def canonical_words(x: Shaped[Array, "rows elements"]) -> UInt32[Array, "rows words"]:
    """The canonical bytes of each row as little-endian words; zeros fill the last word.

    Args:
        x: of any dtype that JAX has.
    """
    x = _whole_bytes(x)
    rows, width = x.shape[0], x.dtype.itemsize
    if width >= 4:
        return lax.bitcast_convert_type(x, jnp.uint32).reshape(rows, -1)
    bits = lax.bitcast_convert_type(x, jnp.uint8 if width == 1 else jnp.uint16)
    per_word = 4 // width
    bits = jnp.pad(bits, ((0, 0), (0, -bits.shape[1] % per_word)))
    return lax.bitcast_convert_type(bits.reshape(rows, -1, per_word), jnp.uint32)


def without_floats(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Floats as integers of the same bits.

    XLA may compute in float32 where a device lacks a float type, be it only to
    slice, and that changes the payloads of NaNs (seen with bfloat16 on CPUs).
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.bitcast_convert_type(x, f"uint{jax.dtypes.itemsize_bits(x.dtype)}")
    return x


def _whole_bytes(x: Shaped[Array, "rows elements"]) -> Shaped[Array, "rows parts"]:
    """Rows of a dtype that has whole bytes and can be bitcast, with the canonical bytes of `x`."""
    x = without_floats(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        pairs = (without_floats(x.real), without_floats(x.imag))
        return jnp.stack(pairs, axis=-1).reshape(x.shape[0], -1)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    if jax.dtypes.itemsize_bits(x.dtype) >= 8:
        return x
    return x.astype(jnp.int8 if jnp.issubdtype(x.dtype, jnp.signedinteger) else jnp.uint8)
