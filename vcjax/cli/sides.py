"""The two sides of `vcjax diff`: commits, checkpoint files, or one of each."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcjax import diffing, formats, hashing, tree
from vcjax.cli.session import Session
from vcjax.errors import RepositoryNotFoundError, RevisionError

if TYPE_CHECKING:
    import numpy as np

    from vcjax.diffing import TreeDiff

BATCH_BYTES = 256 * 1024 * 1024
"""How much of either side is held in memory at once, leaves larger than this aside."""


@dataclass(frozen=True)
class Side:
    """A tree whose leaves can be compared by digest and read one by one.

    Attributes:
        name: as the user wrote it.
        root: `Node`s with payloads that have `spec` and `digest`.
        read: {leaf path: content} of some leaf paths, canonical host arrays.
        commit: digest of the commit; None for a file.
    """

    name: str
    root: Any
    read: "Callable[[list[str]], Mapping[str, np.ndarray]]"
    commit: str | None = None


@dataclass(frozen=True)
class _FileLeaf:
    spec: "tree.LeafSpec"
    digest: str


def side(session: Session, name: str) -> Side:
    """What a word of the command line names: a revision, else a file.

    Raises:
        RevisionError: it is neither.
    """
    try:
        return _commit_side(session, name)
    except (RevisionError, RepositoryNotFoundError) as error:
        if Path(name).is_file():
            return _file_side(name)
        if isinstance(error, RevisionError):
            either = "there is no file of this name either; globs go after A and B, or into --paths"
            error.hint = f"{error.hint} ({either})" if error.hint else either
        raise


def _commit_side(session: Session, name: str) -> Side:
    repo = session.repo
    commit = repo.resolve(name)
    manifest = repo.manifest(commit)

    def read(paths: list[str]) -> "Mapping[str, np.ndarray]":
        return dict(repo.objects.read({path: manifest.leaves[path] for path in paths}))

    return Side(name, manifest.root, read, commit.digest)


def _file_side(name: str) -> Side:
    root = tree.flatten(formats.read(name).tree)
    leaves = tree.leaf_dict(root)

    def read(paths: list[str]) -> "Mapping[str, np.ndarray]":
        return {path: tree.canonical(leaves[path]) for path in paths}

    arrays = [path for path, leaf in leaves.items() if not leaf.spec.is_value]
    pairs = ((leaves[path].spec.dtype, tree.canonical(leaves[path])) for path in arrays)
    digests = dict(zip(arrays, hashing.digest_arrays(pairs), strict=True))

    def digested(path: str, leaf: Any) -> _FileLeaf:
        if leaf.spec.is_value:
            return _FileLeaf(leaf.spec, hashing.value_digest(leaf.spec.dtype, leaf.data).hex())
        return _FileLeaf(leaf.spec, digests[path].leaf.hex())

    return Side(name, tree.map_leaves(digested, root), read)


def compare(old: Side, new: Side, stats: bool, globs: list[str] | None) -> "TreeDiff":
    """What changed from one side to the other.

    Args:
        old: one side.
        new: the other.
        stats: whether to read the leaves that changed and compute figures.
        globs: leaf path globs: only these leaves.
    """
    changes = diffing.compare(old.root, new.root).matching(globs)
    if not stats:
        return changes
    from vcjax.diffing.trees import with_statistics  # loads JAX

    for batch in _batches(changes):
        changes = with_statistics(changes, old.read(batch), new.read(batch))
    return changes


def _batches(changes: "TreeDiff") -> "Iterator[list[str]]":
    """The paths of leaves that can be measured, in groups that fit into memory together."""
    from vcjax.diffing.trees import has_statistics  # loads JAX

    batch, size = [], 0
    for change in changes.changes:
        if change.new is None or not has_statistics(change):
            continue
        nbytes = math.prod(change.new.shape) * tree.storage_dtype(change.new.dtype).itemsize
        if batch and size + nbytes > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(change.path)
        size += nbytes
    if batch:
        yield batch
