"""Trees in memory with the digests of their leaves."""

from dataclasses import dataclass
from typing import Any

from vcjax.hashing import digest_leaves
from vcjax.tree import Leaf, LeafSpec, leaf_dict, map_leaves


@dataclass(frozen=True)
class DigestedLeaf:
    """A leaf with its identity.

    Attributes:
        spec: what it is.
        digest: leaf digest, hexadecimal.
        chunks: chunk digests where there are several.
    """

    spec: LeafSpec
    digest: str
    chunks: tuple[bytes, ...] = ()


def digested(root: Any) -> Any:
    """The same tree with `DigestedLeaf`s at its leaves.

    Args:
        root: `Node`s with `vcjax.tree.Leaf`s at their ends.
    """
    found = digest_leaves(leaf_dict(root))

    def payload(path: str, leaf: Leaf) -> DigestedLeaf:
        digest = found[path]
        chunks = digest.chunks if len(digest.chunks) > 1 else ()
        return DigestedLeaf(leaf.spec, digest.leaf.hex(), chunks)

    return map_leaves(payload, root)
