"""BLAKE3-256 digests of chunks, leaves and values (docs/format.md, "Identity")."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import blake3
import msgpack

DIGEST_BYTES = 32

_PACKER: Callable[..., Any] = msgpack.packb  # its stub says that it may give None


@dataclass(frozen=True, slots=True)
class LeafDigest:
    """The identity of a leaf.

    Attributes:
        leaf: digest of the whole leaf, 32 bytes.
        chunks: digests of its chunks in C order of the grid, 32 bytes each.
    """

    leaf: bytes
    chunks: tuple[bytes, ...]


def digest_bytes(data: bytes | memoryview) -> bytes:
    """BLAKE3-256 of some bytes."""
    return blake3.blake3(data).digest()


def canonical_msgpack(value: Any) -> bytes:
    """MessagePack in the one form that digests are computed over.

    Shortest encodings, `bin` for bytes, float64, maps in ascending order of
    their UTF-8 keys. Strings may hold lone surrogates, as Python's do.
    """
    return pack(_sorted(value))


def pack(value: Any) -> bytes:
    """`canonical_msgpack` of something whose maps are in order already, or that has none."""
    return _PACKER(value, use_bin_type=True, unicode_errors="surrogatepass")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0].encode("utf-8", "surrogatepass"))
        return {key: _sorted(child) for key, child in items}
    if isinstance(value, list | tuple):
        return [_sorted(child) for child in value]
    return value


def leaf_digest(
    dtype: str, shape: Sequence[int], chunks: Sequence[int], digests: Sequence[bytes]
) -> bytes:
    """Digest of an array leaf from the digests of its chunks.

    Args:
        dtype: name of the leaf's dtype, as in `LeafSpec`.
        shape: of the leaf.
        chunks: chunk shape, as `chunk_shape` gives it.
        digests: of the chunks in C order of the grid, 32 bytes each.
    """
    header = ["vcjax.leaf.1", dtype, list(shape), list(chunks), list(digests)]
    return digest_bytes(pack(header))


def value_digest(dtype: str, value: Any) -> bytes:
    """Digest of a plain Python value, in its stored form (`encode_value`)."""
    return digest_bytes(pack(["vcjax.value.1", dtype, encode_value(value)]))


def encode_value(value: Any) -> Any:
    """A Python value as MessagePack holds it: big ints as decimal text, complex as a pair."""
    if isinstance(value, bool | str | bytes):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, complex):
        return [value.real, value.imag]
    return value


def decode_value(dtype: str, stored: Any) -> Any:
    """The Python value that `encode_value` stored."""
    if dtype == "int":
        return int(stored)
    if dtype == "complex":
        return complex(*stored)
    return stored
