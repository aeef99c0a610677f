"""Trees in memory with the digests of their leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vcjax.diffing.small_values import is_small
from vcjax.hashing import LeafDigest, digest_leaves
from vcjax.tree import Leaf, LeafSpec, Node, canonical, leaf_dict, map_leaves


@dataclass(frozen=True)
class DigestedLeaf:
    """A leaf with its identity.

    Attributes:
        spec: what it is.
        digest: leaf digest, hexadecimal.
        chunks: chunk digests where there are several.
        value: what it is, if it is small enough to be shown (`is_small`); else None.
    """

    spec: LeafSpec
    digest: str
    chunks: tuple[bytes, ...] = ()
    value: Any = None


def digested(
    root: Node | Leaf, known: Mapping[str, LeafDigest] | None = None
) -> Node | DigestedLeaf:
    """The same tree with `DigestedLeaf`s at its leaves.

    Args:
        root: `Node`s with `vcjax.tree.Leaf`s at their ends.
        known: digests by leaf path that need not be computed.
    """
    known = known or {}
    missing = {path: leaf for path, leaf in leaf_dict(root).items() if path not in known}
    found = {**known, **digest_leaves(missing)}

    def payload(path: str, leaf: Leaf) -> DigestedLeaf:
        digest = found[path]
        chunks = digest.chunks if len(digest.chunks) > 1 else ()
        return DigestedLeaf(leaf.spec, digest.leaf.hex(), chunks, _value(leaf))

    return map_leaves(payload, root)


def _value(leaf: Leaf) -> Any:
    if not is_small(leaf.spec):
        return None
    return leaf.data if leaf.spec.is_value else canonical(leaf)
