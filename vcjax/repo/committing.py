"""Committing: stage a tree, record it, move the ref; rebase when somebody was faster."""

import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vcjax import hashing, merging, tree
from vcjax.errors import ConflictError, VcjaxError
from vcjax.hashing import LeafDigest, value_digest
from vcjax.hashing.digests import encode_value
from vcjax.history import Commit, History, LeafEntry, Manifest, Prunings, Ref, Refs
from vcjax.history.manifest import check_depth

if TYPE_CHECKING:
    from vcjax.objects import ObjectStore, StagedLeaf

MAX_ATTEMPTS = 1000
"""Lost races in a row before giving up; each one means that somebody else succeeded."""


@dataclass(frozen=True)
class Change:
    """What a commit records, apart from its place in history.

    Attributes:
        manifest: the tree, with all leaves stored.
        message: why.
        author: "Name <address>".
        metadata: JSON types.
        metrics: {name: number}.
        provenance: how the tree was derived, or None.
        extra_parents: further parents, for merges.
        staged_on: the commit, then the tip of the branch, whose leaves the manifest
            counts on being there.
        reason: the word in the log of the ref.
    """

    manifest: Manifest
    message: str
    author: str
    metadata: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None
    extra_parents: tuple[str, ...] = ()
    staged_on: str | None = None
    reason: str = "commit"


@dataclass(frozen=True)
class Base:
    """What a writer's tree is based on.

    Attributes:
        commit: digest of the branch's commit that the writer knows; None on an
            unborn branch.
        manifest: the tree as the *writer* had it then. It differs from the
            commit's where that was rebased onto somebody else's changes.
    """

    commit: str | None
    manifest: Manifest | None


def default_author() -> str:
    """ "user <user@host>" of this process."""
    import getpass  # 0.003 s

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user in this container
        user = "unknown"
    return f"{user} <{user}@{socket.gethostname()}>"


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
    lazy = {path: leaf for path, leaf in leaves.items() if tree.is_lazy(leaf)}
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


class StagedOnPrunedError(VcjaxError):
    """Leaves that a change counts on were pruned by somebody else meanwhile."""


class Committer:
    """Moves refs to new commits."""

    def __init__(self, refs: Refs, history: History, objects: "ObjectStore", prunings: Prunings):
        self._refs = refs
        self._history = history
        self._objects = objects
        self._prunings = prunings

    def record(self, change: Change, parents: tuple[str, ...]) -> Commit:
        """Stores the commit object of a change; moves no ref."""
        generations = [self._history.commit(parent).generation for parent in parents]
        return self._history.write(
            change.manifest,
            lambda manifest: Commit(
                manifest=manifest.digest,
                tree=manifest.tree_digest,
                parents=parents,
                author=change.author,
                time=datetime.now(UTC),
                message=change.message,
                metadata=change.metadata,
                metrics=change.metrics,
                provenance=change.provenance,
                generation=1 + max(generations, default=0),
                leaves=len(manifest.leaves),
                nbytes=manifest.nbytes,
            ),
        )

    def publish(self, name: str, change: Change, base: Base) -> Commit:
        """Commits a change to a branch or a detached `HEAD`.

        If that has moved since `base`, the change is rebased: leaves that
        only the others touched are taken from them.

        Args:
            name: full name of the ref.

        Raises:
            ConflictError: both sides changed the same leaves.
            StagedOnPrunedError: stage the tree again.
            RefError: `HEAD` is to move, and was switched to a branch meanwhile.
        """
        for attempt in range(MAX_ATTEMPTS):
            ref = self._refs.get(name)
            rebased = self._rebased(change, base, ref)
            if ref is not None and (ref.commit != change.staged_on or change.extra_parents):
                self._hold(rebased.manifest, ref.commit)
            first = ref.commit if ref else base.commit
            parents = tuple(filter(None, [first])) + change.extra_parents
            commit = self.record(rebased, parents)
            reason = f"{change.reason}: {commit.summary}"
            if self._refs.set(name, commit.digest, reason, ref) is not None:
                return commit
            time.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.1)))
        raise ConflictError(
            f"gave up after losing {MAX_ATTEMPTS} races for {name}",
            hint="have fewer writers commit to one branch, or give each its own",
        )

    def _hold(self, manifest: Manifest, tip: str) -> None:
        """Makes sure of the leaves of a manifest that the tip of the branch does not have.

        What the tip has cannot be pruned before the tip is replaced, which fails the
        compare-and-set; unless it was pruned before the branch was moved to it.
        Everything else is marked as relied upon.
        """
        there = {}
        if self._prunings.get(tip) is None:
            there = self._history.manifest_of(self._history.commit(tip)).locations
        loose = [entry for entry in manifest.locations.values() if entry.digest not in there]
        if not self._objects.hold(loose):
            raise StagedOnPrunedError(
                "somebody else pruned leaves that this commit counts on", hint="try again"
            )

    def _rebased(self, change: Change, base: Base, ref: Ref | None) -> Change:
        if ref is None:
            return change
        tip, before = self._history.commit(ref.commit), base.manifest
        if ref.commit == base.commit and before is not None and before.tree_digest == tip.tree:
            return change
        if pruning := self._prunings.get(ref.commit):
            raise ConflictError(
                f"{ref.short!r} has moved to {ref.commit[:8]}, whose data are gone: {pruning}",
                hint="`refresh()` and commit again: the commit then follows it as it is",
            )
        head = self._history.manifest_of(tip)
        plan = merging.plan_merge(
            merging.ABSENT if before is None else before.root,
            change.manifest.root,
            head.root,
            digest_lookup(*filter(None, (before, change.manifest, head))),
        )
        if plan.conflicts:
            raise ConflictError(
                f"{ref.short!r} has moved to {ref.commit[:8]}, which changes the same leaves:",
                paths=list(plan.conflicts),
                hint=f"commit to a branch of your own and merge, or restore {ref.short!r} first",
            )
        from absl import logging  # 0.005 s that commands without a race need not wait for

        logging.info("rebased onto %s: %s", ref.commit[:8], plan.counts)
        return replace(change, manifest=Manifest(plan.root))


def digest_lookup(*manifests: Manifest) -> Callable[[Any], str]:
    """A function that gives the digest of any node of these manifests."""
    inner: dict[int, bytes] = {}
    for manifest in manifests:
        inner.update(manifest.node_digests)

    def digest_of(node: Any) -> str:
        return inner[id(node)].hex() if isinstance(node, tree.Node) else node.digest

    return digest_of
