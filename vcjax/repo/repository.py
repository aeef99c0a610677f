"""`Repository`: version control for PyTrees at a URL."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from vcjax.errors import RefError
from vcjax.history import Commit, Head, Ref
from vcjax.history.refnames import HEADS, TAGS, check_name
from vcjax.objects.layout import GRACE_SECONDS
from vcjax.processes.group import Group
from vcjax.repo import settings as settings_
from vcjax.repo.maintenance import Maintenance
from vcjax.repo.merges import Merges
from vcjax.repo.reader import Reader
from vcjax.repo.settings import Settings
from vcjax.repo.writer import Writer
from vcjax.storage import Store

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from vcjax.merging import MergeMethod
    from vcjax.objects import GcPlan, PruneReport, RepairReport
    from vcjax.repo.merges import Progress, WholeMergeOptions
    from vcjax.repo.upgrade import Upgrade
    from vcjax.repo.writer import CommitOptions
    from vcjax.streaming import Model
    from vcjax.threeway.request import Decisions

DEFAULT_BRANCH = "main"


class Repository(Reader):
    """Version control for PyTrees at a URL.

    Make one with `Repository.init(url)`, open one with `Repository.open(url)`; what only
    reads is in `Reader`. The handles `merges` and `processes` hold the rest.

    Attributes:
        merges: merges in several sittings, and merging again (`vcjax.repo.merges`).
        processes: those of a program that commit here together (`vcjax.processes.group`).
        in_flight_bytes: how many bytes of copies background commits may hold; may be
            set before the first of them.
    """

    in_flight_bytes: int = 2 * 1024**3

    def __init__(self, store: Store, settings: Settings, local: bool = False):
        super().__init__(store, settings)
        self.processes = Group(self.url, local)
        self._writer = Writer(self, self.processes, lambda: self.in_flight_bytes)
        self._bases = self._writer.bases
        self._maintenance = Maintenance(self)
        self.merges = Merges(self, self._writer)

    @classmethod
    def init(
        cls,
        url: str | os.PathLike[str],
        *,
        branch: str = DEFAULT_BRANCH,
        compress: bool = False,
        exist_ok: bool = False,
        local: bool = False,
    ) -> "Repository":
        """Makes a repository, with `HEAD` on a branch that has no commit yet.

        Args:
            url: path, file://, memory://, s3:// or gs:// (see `vcjax.storage.parse_url`).
            branch: name of the first branch.
            compress: whether leaf objects are compressed: about a sixth smaller for
                float32 weights, two to three times slower to save.
            exist_ok: open the repository if there already is one.
            local: as for `open`. Otherwise, of several processes that call this
                together, process 0 makes it and the others open it.

        Raises:
            RepositoryExistsError: there is one, and not `exist_ok`.
            StorageError: the place cannot be written.
        """
        check_name(branch)
        store, settings = settings_.locate(url), Settings(compress=compress)
        repo = cls(store, settings, local)
        head = partial(repo.refs.set_head, Head(branch))
        repo.processes.agree(partial(settings_.make, store, settings, head, exist_ok))
        return cls(store, settings_.load(store), local)

    @classmethod
    def open(cls, url: str | os.PathLike[str], *, local: bool = False) -> "Repository":
        """Opens a repository.

        Args:
            url: as for `init`.
            local: this process commits alone, though JAX runs several: it has
                a repository of its own, or the others do not commit.

        Raises:
            RepositoryNotFoundError: there is none.
            UnknownFormatError: its format is newer than this vcjax.
        """
        store = settings_.locate(url)
        return cls(store, settings_.load(store), local)

    def commit(
        self,
        tree: "PyTree",
        message: str = "",
        *,
        branch: str | None = None,
        onto: str | Commit | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        author: str | None = None,
        rebase: bool = True,
        from_first: str | Sequence[str] | None = None,
    ) -> Commit:
        """Records a PyTree. Leaves whose content is stored already cost no bytes.

        The tree is taken to change what this object last committed to the branch or
        restored from its tip, or else what the branch is at (`vcjax.repo.base`). If others
        have committed since, and they changed other leaves, the commit is rebased onto
        theirs.

        Of several processes (`jax.distributed`) every one calls this with its part of the
        same tree, writes the chunks that it owns, and returns the commit that process 0 made.

        Args:
            tree: arrays, PRNG keys and plain values in any containers. Leaves that
                are `vcjax.tree.LazyArray`s are read one after the other, and freed.
            message: why.
            branch: the branch to commit to; the current one by default. A new one
                starts at `HEAD`.
            onto: the revision that the tree was made from, if it is another one than
                said above. A new branch starts there.
            metadata: what JSON can hold; the integer "step" makes `step:N` work.
            metrics: {name: number}; make `best:NAME` work.
            provenance: how the tree came about, JSON types.
            author: "Name <address>"; this user by default.
            rebase: whether to take over what others have committed meanwhile. Without,
                the tree is recorded as it is, after theirs: nothing is merged, and
                there are no conflicts. For those who commit whole states.
            from_first: leaf path globs: of several processes only process 0 has these
                leaves, or those of process 0 count. Not arrays on devices of several.

        Returns:
            The commit; it is durable, and the branch points to it.

        Raises:
            UnsupportedLeafError: a leaf is a function or an unknown object.
            ConflictError: others changed the same leaves meanwhile.
            RefError: `onto` does not lead to what the branch is at.
            StorageError: the disk is full or the bucket out of reach.
            ProcessError: of several processes one failed, was not heard of for
                `processes.timeout`, or has other values.
        """
        said = metadata, metrics, provenance, author
        intent = self._writer.intent(message, branch, onto, *said, rebase, from_first)
        return self._writer.commit(intent, tree)

    def commit_async(
        self, tree: "PyTree", message: str = "", **options: Unpack["CommitOptions"]
    ) -> Future[Commit]:
        """Like `commit`, in the background, with the same options.

        Returns when the arrays may be donated and written to: NumPy arrays are
        copied, arrays on an accelerator fetched. A commit to the same branch that
        is still under way is waited for. The process does not exit before the
        commit is done.

        Returns:
            The future commit. If it fails, the error is raised by its `result()`,
            and once by whichever comes first of the next commit to the branch
            and `wait_until_finished`; it is also logged.

        Raises:
            Exception: that of the commit before, if that failed.
        """
        return self._writer.commit_async(self._writer.intent(message, **options), tree)

    def wait_until_finished(self) -> None:
        """Waits for all background commits; raises the first error, once."""
        self._writer.settle_all()

    @property
    def is_committing(self) -> bool:
        """Whether a background commit is under way."""
        return self._writer.is_busy

    def refresh(self, branch: str | None = None) -> None:
        """Lets the next commit to a branch follow its tip, whoever made that.

        For those who have looked at it, or who commit whole states.

        Args:
            branch: its name; the current one by default.
        """
        name = self._bases.target(branch)
        self._writer.settle(name)
        if name is not None:
            self._bases.forget(name)

    def _restoring(self, revision: str | Commit, like: Any) -> AbstractContextManager[Commit]:
        return self._writer.restoring(revision, like)

    def merge(
        self,
        *revisions: str | Commit,
        branch: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep_conflicts: bool = False,
        progress: "Progress | None" = None,
        **decisions: Unpack["Decisions"],
    ) -> Commit:
        """Merges by history: what one side changed is taken, what several changed is settled.

        Leaves are merged one by one (`vcjax.streaming.executor`); if the process is killed,
        the same merge goes on where it was.

        Args:
            revisions: what is merged. One is merged into `HEAD`; of several the first is
                "ours". If that is a branch, it moves to the result.
            branch: the branch that moves, if not "ours". It must be at "ours".
            metadata: of the commit, JSON types.
            keep_conflicts: take down the merge if conflicts are left, so that
                `merges.resume` can settle them later. The branch does not move.
            progress: called with the bytes that were read for the method, and of all.
            **decisions: `method=`, a merge method (`vcjax.merging`), its name, or its
                {"name": …, "parameters": …}, for the leaves that several changed; it
                merges those sides alone that changed the leaf.
                `weights=`, one number per side, and `key=`, for random methods, go with
                it. `resolve=`, a side ("ours", "theirs", "base") for all conflicts, or
                {leaf path glob: side}, goes before it; of more than two sides, all but
                "ours" are called by their revisions as given, and "method" leaves a leaf
                to the method. `message=`, `metrics=` and `author=`, of the commit.

        Returns:
            The merge commit; the other side itself if it merely continues "ours", and
            "ours" if it contains all others already. Its provenance records the
            method, its parameters, the inputs and every decision.

        Raises:
            ConflictError: conflicts are left that nothing settles; names every path.
            RefError: "ours" is no branch and none is given.
            MergeError: `method` is no merge method, or cannot be applied; or a merge
                into the branch is under way.
        """
        return self.merges.start(
            *revisions,
            branch=branch,
            metadata=metadata,
            keep_conflicts=keep_conflicts,
            progress=progress,
            **decisions,
        )

    def merge_models(
        self,
        models: "Sequence[Model | str | os.PathLike[str] | Commit]",
        method: "MergeMethod | str | Mapping[str, Any]",
        **options: Unpack["WholeMergeOptions"],
    ) -> Commit:
        """Merges N whole models, without history, and commits the result.

        See `vcjax.repo.merges.Merges.whole`, which is this.
        """
        return self.merges.whole(models, method, **options)

    def branch(self, name: str, at: str | Commit = "HEAD", *, force: bool = False) -> Ref:
        """Makes a branch; with `force`, moves one.

        Raises:
            RefError: the name is invalid or taken.
        """
        ref = self._point(HEADS + check_name(name), at, force, "branch")
        self._bases.forget(ref.name)
        return ref

    def tag(self, name: str, at: str | Commit = "HEAD", *, force: bool = False) -> Ref:
        """Makes a tag; with `force`, moves one.

        Raises:
            RefError: the name is invalid or taken.
        """
        return self._point(TAGS + check_name(name), at, force, "tag")

    def _point(self, name: str, at: str | Commit, force: bool, kind: str) -> Ref:
        digest = self.resolve(at).digest
        return self.refs.move(name, digest, f"{kind}: at {digest[:8]}", force=force)

    def delete_branch(self, name: str) -> None:
        """Deletes a branch. Its commits stay reachable by digest and through its log.

        Raises:
            RefError: there is none, or it is the current one.
        """
        if self.head.branch == name:
            raise RefError(f"{name!r} is the current branch", hint="switch to another one first")
        self.refs.remove(HEADS + name)
        self._bases.forget(HEADS + name)

    def delete_tag(self, name: str) -> None:
        """Deletes a tag.

        Raises:
            RefError: there is none.
        """
        self.refs.remove(TAGS + name)

    def switch(self, name: str, *, create: bool = False, detach: bool = False) -> Head:
        """Makes a branch the current one.

        Args:
            name: a branch; with `detach`, any revision.
            create: make the branch at `HEAD` first.
            detach: point `HEAD` to a commit itself.

        Raises:
            RefError: there is no such branch.
        """
        if detach:
            head = Head(None, self.resolve(name).digest)
        elif create and self._bases.head_digest() is None:
            head = Head(check_name(name))
        else:
            if create:
                self.branch(name)
            self.refs.require(HEADS + check_name(name))
            head = Head(name)
        self.refs.set_head(head, f"switch: to {name}")
        self._bases.forget(None)
        return head

    def undo(self) -> Ref | None:
        """Takes the current branch back to where it was before its last change.

        Undoing again goes further back. Nothing is lost: `BRANCH@{1}` is what was
        undone.

        Returns:
            The new state of the branch; None if it has no commit any more.

        Raises:
            RefError: there is nothing to undo.
        """
        branch = self.head.branch
        if branch is None:
            raise RefError("HEAD is on no branch", hint="switch to a branch first")
        self._writer.settle(HEADS + branch)
        self._bases.forget(HEADS + branch)
        return self.refs.undo(HEADS + branch)

    def gc(
        self,
        *,
        dry_run: bool = False,
        grace: float = GRACE_SECONDS,
        force: bool = False,
        unsafe: bool = False,
    ) -> "GcPlan":
        """Deletes what nothing leads to and was not written lately; says what it was.

        Args:
            dry_run: only say what would be deleted.
            grace: spare what is younger than this, seconds by the store's clock.
            force: spare only what is younger than a commit may take, 10 minutes.
            unsafe: spare nothing for its age. A commit that somebody is making just now
                may lose its data, and be refused or damaged.

        Raises:
            CorruptionError: something live cannot be read; nothing is deleted then.
        """
        return self._maintenance.gc(dry_run, grace, force, unsafe)

    def prune(self, commits: Sequence[str | Commit], policy: str) -> "PruneReport":
        """Lets the data of some commits go; they stay in the log with manifest and metrics.

        Data that other commits use stay. A commit that a ref points to is spared.

        Args:
            policy: why, in words; `restore` quotes it.
        """
        return self._maintenance.prune([self.resolve(commit).digest for commit in commits], policy)

    def repair(self) -> "RepairReport":
        """Heals what follows from what is whole; moves damaged objects to `quarantine/`.

        Raises:
            CorruptionError: refs or commits cannot be read.
        """
        return self._maintenance.repair(DEFAULT_BRANCH)

    def upgrade(self, *, dry_run: bool = False) -> "Upgrade":
        """Takes the repository to the newest disk format, which older versions cannot open."""
        return self._maintenance.upgrade(dry_run)
