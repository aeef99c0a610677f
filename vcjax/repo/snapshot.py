"""Snapshots: what a commit in the background keeps of arrays that the caller goes on using."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from vcjax import hashing, tree
from vcjax.errors import ConflictError
from vcjax.hashing import DigestMemo, LeafDigest
from vcjax.history import Manifest
from vcjax.objects import ObjectStore, StagedLeaf

Needed = Mapping[str, Sequence[tuple[slice, ...]]]
"""{leaf path: the regions that a commit writes of it}, of leaves that it does not write whole."""


def remote_digests(root: Any, memo: DigestMemo) -> dict[str, LeafDigest]:
    """Digests of the leaves on accelerators: those that are stored are not fetched."""
    leaves = tree.leaf_dict(root)
    remote = {path: leaf for path, leaf in leaves.items() if tree.is_remote(leaf.data)}
    return hashing.digest_leaves(remote, memo=memo) if remote else {}


def needed_regions(
    root: Any,
    digests: Mapping[str, LeafDigest],
    before: Manifest | None,
    objects: ObjectStore,
) -> Needed:
    """What has to be fetched of leaves that are not written whole.

    Args:
        root: the flattened tree.
        digests: of leaves on accelerators.
        before: the tree that the branch has now.
        objects: where the leaves will be stored.
    """
    leaves = tree.leaf_dict(root)
    known, former = (before.locations, before.leaves) if before else ({}, {})
    needed: dict[str, Sequence[tuple[slice, ...]]] = {}
    for path, digest in digests.items():
        if digest.leaf.hex() in known:
            needed[path] = ()
        elif path in former:
            staged = StagedLeaf(leaves[path], digest, former[path])
            regions = objects.needed_regions(staged)
            if regions is not None:
                needed[path] = regions
    return needed


def copied_bytes(root: Any, needed: Needed) -> int:
    """How many bytes `snapshot` will allocate."""
    return sum(_copied_bytes(leaf, needed.get(path)) for path, leaf in tree.leaf_dict(root).items())


def _copied_bytes(leaf: tree.Leaf, regions: Sequence[tuple[slice, ...]] | None) -> int:
    if regions is not None:
        sizes = (math.prod(b - a for a, b in tree.bounds(region)) for region in regions)
        return sum(sizes) * tree.itemsize(leaf.spec.dtype)
    if isinstance(leaf.data, np.ndarray) or tree.is_remote(leaf.data):
        return leaf.data.nbytes
    return 0


def snapshot(root: Any, needed: Needed) -> Any:
    """The same flattened tree, safe from what the caller does with its arrays next.

    NumPy arrays may be written to, and are copied. A `jax.Array` may be donated,
    and is fetched to the host; on CPU that is a view, and JAX does not reuse
    a donated buffer while a view of it is held. What is lazy is read when its turn comes.

    Args:
        needed: leaves of which regions are enough, or nothing.
    """
    return tree.map_leaves(partial(_snapshot, needed), root)


def _snapshot(needed: Needed, path: str, leaf: tree.Leaf) -> tree.Leaf:
    if leaf.spec.is_value or leaf.is_lazy:
        return leaf
    if path in needed:
        parts = {tree.bounds(region): tree.canonical(leaf, region) for region in needed[path]}
        data = tree.Excerpt(leaf.data.shape, leaf.data.dtype, parts) if parts else None
        return tree.Leaf(leaf.spec, data)
    if isinstance(leaf.data, np.ndarray):
        return unshared(leaf)
    return tree.Leaf(leaf.spec, tree.canonical(leaf))


def unshared(leaf: tree.Leaf) -> tree.Leaf:
    """The same leaf, with a NumPy array of its own; JAX never writes to the host's view of one."""
    if isinstance(leaf.data, np.ndarray):
        return tree.Leaf(leaf.spec, np.array(leaf.data, order="C", copy=True))
    return leaf


def require_stored(root: Any, digests: Mapping[str, LeafDigest], before: Manifest | None) -> None:
    """Raises if a leaf that was not fetched, as the branch had it, is there no more.

    Args:
        root: what `snapshot` gave.
        digests: of the leaves that were not fetched, at least.
        before: the tree that the branch has now.

    Raises:
        ConflictError: naming those leaves.
    """
    known = before.locations if before else {}
    lost = [
        path
        for path, leaf in tree.leaf_dict(root).items()
        if leaf.data is None and digests[path].leaf.hex() not in known
    ]
    if lost:
        raise ConflictError(
            "the branch has moved since the commit began, and lacks leaves that were not fetched:",
            paths=lost,
            hint="commit again",
        )
