"""Reading a repository: revisions, manifests, restore, log and diff."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from vcjax import history
from vcjax.errors import CorruptionError, RevisionError
from vcjax.history import (
    Blame,
    Commit,
    CommitLog,
    Head,
    History,
    KeptMerges,
    Manifest,
    Prunings,
    Refs,
    Resolver,
    StoredTrees,
    TouchWalk,
)
from vcjax.history.refnames import HEADS, TAGS
from vcjax.repo import settings as settings_
from vcjax.repo.settings import Settings
from vcjax.storage import Store

if TYPE_CHECKING:
    from vcjax.diffing import Similarity, TreeDiff
    from vcjax.objects import FsckReport, ObjectStore
    from vcjax.repo.trajectory import Trajectory
    from vcjax.streaming.model import Model
    from vcjax.threeway import MergePlan


class Reader:
    """A repository that is only read: the half of `Repository` that changes nothing.

    Usable alone: `Reader.open(url)`.

    Attributes:
        url: where it is.
        settings: from its `vcjax.json`.
        store: its keys and values.
        refs: branches, tags and `HEAD`.
        history: commits and manifests.
        prunings: which commits have let their data go.
        kept_merges: what was asked of merges that are under way.
    """

    def __init__(self, store: Store, settings: Settings):
        self.url = store.url
        self.settings = settings
        self.store = store
        self.refs = Refs(store)
        self.history = History(store)
        self.prunings = Prunings(store)
        self.kept_merges = KeptMerges(store)
        self.resolver = Resolver(self.refs, self.history.commit, self.history.find_prefix)

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Self:
        """Opens a repository to be read.

        Args:
            url: path, file://, memory://, s3:// or gs:// (see `vcjax.storage.parse_url`).

        Raises:
            RepositoryNotFoundError: there is none.
            UnknownFormatError: its format is newer than this vcjax.
        """
        store = settings_.locate(url)
        return cls(store, settings_.load(store))

    @classmethod
    def find(cls, start: str | os.PathLike[str] = ".") -> Self:
        """Opens the repository of a folder or the nearest folder above it.

        Raises:
            RepositoryNotFoundError: there is none.
        """
        return cls.open(settings_.find(start))

    @cached_property
    def objects(self) -> "ObjectStore":
        """Leaf objects and packs."""
        from vcjax.objects import ObjectStore  # 0.03 s that `vcjax log` need not wait for

        return ObjectStore(self.store, compress=self.settings.compress)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def resolve(self, revision: str | Commit) -> Commit:
        """The commit that a revision names (see `vcjax.history.revisions`).

        Raises:
            RevisionError: it names none, or more than one.
        """
        return revision if isinstance(revision, Commit) else self.resolver.resolve(revision)

    def manifest(self, revision: str | Commit = "HEAD") -> Manifest:
        """The tree of a commit without its data: structure, dtypes, shapes, digests."""
        return self.history.manifest_of(self.resolve(revision))

    def restore(
        self,
        revision: str | Commit = "HEAD",
        like: Any = None,
        paths: str | Sequence[str] | None = None,
        verify: bool = True,
    ) -> Any:
        """The tree of a commit.

        Args:
            revision: which commit.
            like: a concrete or abstract tree (`jax.ShapeDtypeStruct` with
                shardings): the result has exactly its structure, types and
                shardings, cast to its dtypes. Without it, the containers are those
                that were committed.
            paths: leaf path globs, such as "params/encoder/**": only these leaves.
                Together with `like`, its other leaves are taken over.
            verify: whether every leaf is checked against its digest.

        A `Repository` takes what was restored from the tip of its current branch, or from
        a detached `HEAD`, for what the next commit there changes. If `like` has arrays on
        the devices of several processes, these call this together: process 0 says which
        commit the revision is, and each reads only the chunks that its own devices hold
        parts of.

        Raises:
            RevisionError: no such commit.
            StructureError: the stored tree does not fit `like`; names every path.
            CorruptionError: a leaf is damaged or gone; names its path.
            PrunedError: a retention policy let the data of this commit go.
        """
        from vcjax.repo.restore import restore

        with self._restoring(revision, like) as commit:
            self.require_data(commit)
            manifest = self.history.manifest_of(commit)
            return restore(manifest, self.objects, like, paths, verify)

    def _restoring(self, revision: str | Commit, like: Any) -> AbstractContextManager[Commit]:
        """The commit to be restored; who commits as well notes, after that, what was seen."""
        return nullcontext(self.resolve(revision))

    def require_data(self, commit: Commit) -> None:
        """Raises if the data of a commit were let go.

        Raises:
            PrunedError: says when, and by which policy.
        """
        self.prunings.require(commit)

    def log(
        self,
        *revisions: str | Commit,
        limit: int | None = None,
        first_parent: bool = False,
        paths: str | Sequence[str] | None = None,
    ) -> CommitLog:
        """The commits that lead to some revisions, newest first, children before parents.

        They come one after the other, as they are asked for.

        Args:
            revisions: where to start; `HEAD` by default. A range "A..B" leaves out
                what leads to A.
            limit: how many at the most.
            first_parent: follow only the first parent of merges.
            paths: leaf path globs: only commits that changed such a leaf, from
                manifests alone and simplified as by `git log -- PATH`.
        """
        commits = self._walk(revisions, first_parent, paths)
        return CommitLog(itertools.islice(commits, limit))

    def _walk(
        self,
        revisions: Sequence[str | Commit],
        first_parent: bool,
        paths: str | Sequence[str] | None,
    ) -> Iterator[Commit]:
        if paths is None:
            heads, exclude = self._ends(revisions)
            yield from history.walk(heads, self.history.commit, first_parent, exclude)
            return
        for touch in self.touches(*revisions, paths=paths, first_parent=first_parent):
            yield touch.commit

    def touches(
        self, *revisions: str | Commit, paths: str | Sequence[str], first_parent: bool = False
    ) -> TouchWalk:
        """A walk over the commits that changed some leaves, with how much each changed.

        Args:
            revisions: as for `log`.
            paths: leaf path globs.
            first_parent: follow only the first parent of merges.

        Example:
            >>> import vcjax
            >>> repo = vcjax.Repository.init("memory://touches")
            >>> first = repo.commit({"w": 1, "b": 1})
            >>> second = repo.commit({"w": 1, "b": 2})
            >>> [touch.counts["changed"] for touch in repo.touches(paths="b")]
            [1, 0]
        """
        heads, exclude = self._ends(revisions)
        globs = [paths] if isinstance(paths, str) else list(paths)
        trees = StoredTrees(self.history)
        return TouchWalk(heads, self.history.commit, trees, globs, first_parent, exclude)

    def _ends(self, revisions: Sequence[str | Commit]) -> tuple[list[str], list[str]]:
        """Digests of the commits where a walk starts, and of those that it leaves out."""
        heads, exclude = [], []
        for revision in revisions or ("HEAD",):
            ends = self.resolver.resolve_range(revision) if isinstance(revision, str) else None
            if ends is None:
                heads.append(self.resolve(revision).digest)
                continue
            exclude.append(ends[0].digest)
            heads.append(ends[1].digest)
        return heads, exclude

    def blame(
        self,
        revision: str | Commit = "HEAD",
        chunks: bool = False,
        paths: str | Sequence[str] | None = None,
    ) -> Blame:
        """The commit that last changed each leaf, in tree order. Reads manifests alone.

        A leaf that moved is followed to its old path; one that a merge took from a
        side is that side's.

        Args:
            revision: whose leaves.
            chunks: whether to tell it of every chunk (4 MiB) of a leaf by itself.
            paths: leaf path globs: only these leaves.

        Raises:
            RevisionError: no such commit.
            TreeError: a glob matches no leaf.

        Example:
            >>> import vcjax
            >>> repo = vcjax.Repository.init("memory://blame")
            >>> first = repo.commit({"w": 1, "b": 1}, "one")
            >>> second = repo.commit({"w": 1, "b": 2}, "two")
            >>> {leaf.path: leaf.commit.message for leaf in repo.blame()}
            {'b': 'two', 'w': 'one'}
        """
        commit = self.resolve(revision)
        return history.blame(commit, self.history.commit, StoredTrees(self.history), chunks, paths)

    def trajectory(
        self, over: str = "HEAD", paths: str | Sequence[str] | None = None
    ) -> "Trajectory":
        """How leaves moved over a line of history: norm, distance from its start, every step.

        Args:
            over: a range "A..B": from A to B by first parents, both included; or a
                revision: from the first commit to it.
            paths: leaf path globs: only these leaves. Leaves that are no arrays of
                numbers are left out, and data that were pruned are gaps.

        Raises:
            RevisionError: first parents do not lead from B to A.
            TreeError: a glob matches no leaf, or none is an array of numbers.

        Example:
            >>> import vcjax, numpy as np
            >>> repo = vcjax.Repository.init("memory://trajectory")
            >>> commits = [repo.commit({"w": np.float32([3 * i, 4 * i])}) for i in range(3)]
            >>> repo.trajectory("HEAD~2..HEAD").leaves[0].distance
            (0.0, 5.0, 10.0)
        """
        from vcjax.repo.trajectory import trace

        return trace(self, self.objects, over, paths)

    def diff(
        self,
        old: str | Commit = "HEAD~1",
        new: str | Commit = "HEAD",
        *,
        stats: bool | Literal["whole", "full"] = True,
        paths: str | Sequence[str] | None = None,
        base: str | Commit | None = None,
    ) -> "TreeDiff":
        """What changed from one commit to another.

        Args:
            old: a revision.
            new: a revision.
            stats: whether to read what changed and compute figures. Of a leaf of
                which some chunks changed these alone are read, and figures that need
                the others too, as `relative_l2`, are None; "whole" reads those as
                well, "full" also computes singular values and histograms.
            paths: leaf path globs: only these leaves.
            base: a revision that both come from: then the diff's `three_way` says
                what each of the two changed of it, and how far they agree.

        Commits whose data were let go are compared by digests alone; the diff's `unread`
        says which and why.
        """
        from vcjax.repo.diff import compare_commits

        sides = [self.resolve(side) for side in (old, new, base) if side is not None]
        return compare_commits(self, self.objects, sides, stats, paths)

    def similarity(
        self, revisions: Sequence[str | Commit], base: str | Commit | None = None
    ) -> "Similarity":
        """How alike several commits are in what they changed of a common base.

        Args:
            revisions: of the commits.
            base: the revision that they come from; by default their best common ancestor.

        Raises:
            RevisionError: they have no common ancestor, or several.
            PrunedError: a retention policy let the data of one of them go.
        """
        from vcjax.repo.diff import similarity_of_commits

        commits = [self.resolve(revision) for revision in revisions]
        origin = None if base is None else self.resolve(base)
        names = [name_of(revision) for revision in revisions]
        return similarity_of_commits(self, self.objects, commits, origin, names)

    def plan_merge(self, ours: str | Commit, *theirs: str | Commit) -> "MergePlan":
        """What merging commits would do to each leaf; reads no data and changes nothing."""
        from vcjax.threeway.commit_plan import plan_commits

        digests = [self.resolve(side).digest for side in (ours, *theirs)]
        return plan_commits(self.history, digests)[0]

    def model(self, source: "Model | str | os.PathLike[str] | Commit") -> "Model":
        """What a merge takes in, from a revision or else the path of a file or folder.

        Raises:
            RevisionError: it is neither.
        """
        from vcjax.streaming import model as models

        if isinstance(source, models.Model):
            return source
        try:
            commit = self.resolve(source if isinstance(source, Commit) else str(source))
        except RevisionError:
            if isinstance(source, Commit) or not os.path.exists(source):
                raise
            return models.of_file(source)
        return models.of_commit(commit, self.manifest(commit), self.objects, str(source))

    def fsck(self) -> "FsckReport":
        """Checks every ref, commit, manifest and leaf against its digest."""
        from vcjax.objects import fsck

        report = fsck(self.refs, self.history, self.prunings, self.objects)
        report.check(settings_.KEY, lambda: settings_.load(self.store))
        return report

    @property
    def branches(self) -> dict[str, str]:
        """{branch: digest of its commit}."""
        return {ref.short: ref.commit for ref in self.refs.under(HEADS).values()}

    @property
    def tags(self) -> dict[str, str]:
        """{tag: digest of its commit}."""
        return {ref.short: ref.commit for ref in self.refs.under(TAGS).values()}

    @property
    def head(self) -> Head:
        """The current branch, or commit when detached, and the commit where that is."""
        head = self.refs.head()
        try:
            ref = self.refs.get("HEAD" if head.branch is None else HEADS + head.branch)
        except CorruptionError:  # who asks for the commit is told so
            return head
        return head if ref is None else replace(head, tip=ref.commit)


def name_of(revision: str | Commit) -> str:
    """What a user called a commit; the beginning of its digest if it was given itself."""
    return revision if isinstance(revision, str) else revision.digest[:8]
