"""BLAKE3-256 digests of chunks, leaves and values (docs/format.md, "Identity")."""

from collections.abc import Callable, Mapping, Sequence
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


def checksum(body: Mapping[str, Any]) -> str:
    """Checksum of a JSON object that no digest names: refs, `HEAD`, headers, settings.

    It stands in the object itself, as its member "check", which does not count.

    Args:
        body: what JSON can hold, integers of at most 64 bits.
    """
    rest = {key: value for key, value in body.items() if key != "check"}
    return digest_bytes(canonical_msgpack(["vcjax.check.1", rest])).hex()[:16]


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
    """Digest of a plain Python value."""
    return stored_value_digest(dtype, encode_value(value))


def stored_value_digest(dtype: str, stored: Any) -> bytes:
    """Digest of a plain Python value in its stored form (`encode_value`)."""
    return digest_bytes(pack(["vcjax.value.1", dtype, stored]))


def encode_value(value: Any) -> Any:
    """A Python value as MessagePack holds it: ints as hexadecimal text, complex as a pair.

    Ints of any size have to fit, and Python converts them to decimal text only
    up to 4,300 digits.
    """
    if isinstance(value, bool | str | bytes):
        return value
    if isinstance(value, int):
        return format(value, "x")
    if isinstance(value, complex):
        return [value.real, value.imag]
    return value


def decode_value(dtype: str, stored: Any) -> Any:
    """The Python value that `encode_value` stored.

    Raises:
        ValueError: it is in no such form.
    """
    kind, decode = _VALUES.get(dtype, (type(None), None))
    if decode is None or type(stored) is not kind:
        raise ValueError(f"{type(stored).__name__} is not how a {dtype!r} is stored")
    return decode(stored)


_VALUES: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "bool": (bool, bool),
    "int": (str, lambda stored: int(stored, 16)),
    "float": (float, float),
    "complex": (list, lambda stored: complex(*map(float, stored))),
    "str": (str, str),
    "bytes": (bytes, bytes),
}
