"""Which leaves are taken together, and which chunks are read. Needs no JAX."""

from collections.abc import Iterator, Mapping, Sequence


def batches(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Groups of names, in order, whose sizes add up to `limit` at most; larger ones alone.

    Args:
        sizes: {name: bytes}.
        limit: bytes.
    """
    batch: list[str] = []
    held = 0
    for name, size in sizes.items():
        if batch and held + size > limit:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += size
    if batch:
        yield batch


def differing(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[int, ...] | None:
    """The numbers of the chunks that differ, from two lists of chunk digests; None: unknown."""
    if not old or len(old) != len(new):
        return None
    return tuple(i for i, (one, other) in enumerate(zip(old, new, strict=True)) if one != other)
