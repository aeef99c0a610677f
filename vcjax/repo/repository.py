"""`Repository`: the one object that holds the state of a store with refs."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from vcjax import objects
from vcjax.errors import RefError, RepositoryExistsError
from vcjax.history import Commit, Head, Ref
from vcjax.history.refnames import HEAD, HEADS, TAGS, check_name, set_command
from vcjax.objects.layout import GRACE_SECONDS
from vcjax.repo import settings as settings_
from vcjax.repo.merges import Resumer
from vcjax.repo.settings import Settings

if TYPE_CHECKING:
    from vcjax.objects import FsckReport, GcPlan, Pruner, PruneReport

DEFAULT_BRANCH = "main"


class Repository(Resumer):
    """Version control for PyTrees at a URL.

    Make one with `Repository.init(url)`, open one with `Repository.open(url)`.

    Reading is in `Reader`, agreeing with other processes in `Participant`, what a commit is based
    on in `Tracker`, committing in `Writer`, merging in `Merger`, going on with merges in
    `Resumer`; all are part of this class.
    """

    # -- opening ---------------------------------------------------------------

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
        store = settings_.locate(url)
        settings = Settings(compress=compress)
        repo = cls(store, settings, local)

        def make() -> None:
            if exist_ok and store.read(settings_.KEY) is not None:
                return
            try:
                settings_.create(store, settings, lambda: repo.refs.set_head(Head(branch)))
            except RepositoryExistsError:  # somebody was faster
                if not exist_ok:
                    raise

        repo.agree(make)
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

    @classmethod
    def find(cls, start: str | os.PathLike[str] = ".") -> "Repository":
        """Opens the repository of a folder or the nearest folder above it.

        Raises:
            RepositoryNotFoundError: there is none.
        """
        return cls.open(settings_.find(start))

    # -- refs ------------------------------------------------------------------

    def branch(self, name: str, at: str | Commit = "HEAD", *, force: bool = False) -> Ref:
        """Makes a branch; with `force`, moves one.

        Raises:
            RefError: the name is invalid or taken.
        """
        ref = self._point(HEADS + check_name(name), at, force, "branch")
        self._bases.pop(ref.name, None)
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
        self._bases.pop(HEADS + name, None)

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
        elif create and self._head_digest() is None:
            head = Head(check_name(name))
        else:
            if create:
                self.branch(name)
            self.refs.require(HEADS + check_name(name))
            head = Head(name)
        self.refs.set_head(head, f"switch: to {name}")
        self._bases.pop(HEAD, None)
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
        name = HEADS + branch
        self._settle(name)
        self._bases.pop(name, None)
        if self.refs.get(name) is None:
            self.refs.refuse_lost(name)
            former = self.refs.log(name)
            hint = "make one with `vcjax commit FILE` or `repo.commit(tree, message)`"
            if former:
                hint = f"{set_command(branch, former[0].commit)} makes it anew where it was"
            raise RefError(f"branch {branch!r} has no commit, so nothing to undo", hint=hint)
        return self.refs.undo(name)

    # -- care ------------------------------------------------------------------

    def fsck(self) -> "FsckReport":
        """Checks every ref, commit, manifest and leaf against its digest."""
        report = objects.fsck(self.refs, self.history, self.prunings, self.objects)
        report.check(settings_.KEY, lambda: settings_.load(self.store))
        return report

    def gc(
        self, *, dry_run: bool = False, grace: float = GRACE_SECONDS, force: bool = False
    ) -> "GcPlan":
        """Deletes what nothing leads to and was not written lately.

        Args:
            dry_run: only say what would be deleted.
            grace: spare what is younger than this, seconds.
            force: spare nothing for its age. Unsafe while others commit.

        Returns:
            What was, or would be, deleted.
        """
        parts = self.refs, self.history, self.prunings, self.objects
        plan = objects.plan_gc(*parts, grace=float("-inf") if force else grace)
        if not dry_run:
            objects.sweep(plan, *parts)
            self.__dict__.pop("_pruner", None)  # it knows of commits that are gone
        return plan

    def prune(self, commits: Sequence[str | Commit], policy: str) -> "PruneReport":
        """Lets the data of some commits go; they stay in the log with manifest and metrics.

        Data that other commits use stay. A commit that a ref points to is spared.

        Args:
            policy: why, in words; `restore` quotes it.

        Returns:
            Which commits were pruned, which were spared, and what was deleted.
        """
        return self._pruner.prune([self.resolve(commit).digest for commit in commits], policy)

    @cached_property
    def _pruner(self) -> "Pruner":
        return objects.Pruner(self.refs, self.history, self.prunings, self.objects)
