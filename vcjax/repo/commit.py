"""Recording a change and moving its ref; rebasing it when somebody was faster."""

import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vcjax import threeway
from vcjax.errors import ConflictError, VcjaxError
from vcjax.history import Commit, History, Manifest, Prunings, Ref, Refs
from vcjax.history.commit import Change
from vcjax.repo.base import Base
from vcjax.threeway.plan import digest_lookup

if TYPE_CHECKING:
    from vcjax.objects import ObjectStore

MAX_ATTEMPTS = 1000
"""Lost races in a row before giving up; each one means that somebody else succeeded."""


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
                author=change.details.author,
                time=datetime.now(UTC),
                message=change.details.message,
                metadata=change.details.metadata,
                metrics=change.details.metrics,
                provenance=change.details.provenance,
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
            early = self._objects.store.tells_ages
            if early:
                self._history.secure(commit, rebased.manifest)
            if self._refs.set(name, commit.digest, reason, ref) is not None:
                if not early:
                    self._history.secure(commit, rebased.manifest)
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
        if ref is None or not change.rebase:
            return change
        tip, before = self._history.commit(ref.commit), base.manifest
        if ref.commit == base.commit and before is not None and before.tree_digest == tip.tree:
            return change
        if pruning := self._prunings.get(ref.commit):
            raise ConflictError(
                f"{ref.short!r} has moved to {ref.commit[:8]}, whose data are gone: {pruning}",
                hint="`repo.refresh()` and commit again: the commit then follows it as it is",
                shell_hint="commit again: the commit then follows it as it is",
            )
        head = self._history.manifest_of(tip)
        plan = threeway.plan_merge(
            threeway.ABSENT if before is None else before.root,
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
