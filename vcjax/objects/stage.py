"""Staging a tree: which of its leaves are stored already, and which must be written."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vcjax import hashing, tree
from vcjax.errors import VcjaxError
from vcjax.hashing import LeafDigest, value_digest
from vcjax.hashing.digests import encode_value
from vcjax.history import LeafEntry, Manifest
from vcjax.history.manifest import check_depth

if TYPE_CHECKING:
    from vcjax.objects import ObjectStore, StagedLeaf


def stage(
    root: Any,
    objects: "ObjectStore",
    before: Manifest | None = None,
    digests: Iterable[tuple[str, LeafDigest]] | None = None,
) -> Manifest:
    """Stores the leaves of a flattened tree that are new; its manifest.

    Args:
        root: what `vcjax.tree.flatten` gave.
        objects: where to store them.
        before: the commit that this one follows: what it has is not stored again,
            and its leaves are bases for those that replace them.
        digests: leaf path and digest of every array leaf that is not lazy, in any
            order; drawn one by one. Computed here by default. Lazy leaves are read,
            digested and written last, two of them in memory at a time.
    """
    from vcjax.objects import StagedLeaf  # with what it needs, 0.03 s

    check_depth(root)
    leaves = tree.leaf_dict(root)
    lazy = {path: leaf for path, leaf in leaves.items() if leaf.is_lazy}
    arrays = {
        path: leaf for path, leaf in leaves.items() if not leaf.spec.is_value and path not in lazy
    }
    former = before.leaves if before else {}
    order: list[str] = []

    def staged() -> "Iterator[StagedLeaf]":
        for path, digest in hashing.iter_digests(arrays) if digests is None else digests:
            order.append(path)
            yield StagedLeaf(arrays[path], digest, former.get(path))
        for path, leaf in lazy.items():
            order.append(path)
            yield _loaded(path, leaf, former.get(path))

    written = objects.write(staged(), before.locations if before else {})
    entries = dict(zip(order, written, strict=True))

    def entry(path: str, leaf: Any) -> LeafEntry:
        if path in entries:
            return entries[path]
        digest = value_digest(leaf.spec.dtype, leaf.data).hex()
        return LeafEntry(leaf.spec, digest, inline=encode_value(leaf.data), is_inline=True)

    return Manifest(tree.map_leaves(entry, root))


def _loaded(path: str, leaf: Any, former: LeafEntry | None) -> "StagedLeaf":
    """A lazy leaf with its data."""
    from vcjax.objects import StagedLeaf

    try:
        here = tree.Leaf(leaf.spec, tree.canonical(leaf))
    except VcjaxError as error:
        if error.path is None:
            error.path, error.message = path, f"leaf {path!r}: {error.message}"
        raise
    [digest] = hashing.digest_arrays([(leaf.spec.dtype, here.data)])
    return StagedLeaf(here, digest, former, is_transient=True)
