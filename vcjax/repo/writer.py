"""Committing trees to a repository, now or in the background, alone or by several processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from vcjax.history import Commit, Manifest, Ref
from vcjax.history.commit import Change, Details
from vcjax.history.refnames import HEAD
from vcjax.processes.group import Group
from vcjax.repo.base import Base, Bases
from vcjax.repo.commit import Committer, StagedOnPrunedError
from vcjax.repo.reader import Reader

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from vcjax.hashing import DigestMemo, LeafDigest
    from vcjax.processes.conversation import Conversation
    from vcjax.repo.background import Background
    from vcjax.repo.shared_commit import Held
    from vcjax.tree import Leaf, Node


class CommitOptions(TypedDict, total=False):
    """What may be said of a commit; see `Repository.commit`."""

    branch: str | None
    onto: str | Commit | None
    metadata: Mapping[str, Any] | None
    metrics: Mapping[str, Any] | None
    provenance: Mapping[str, Any] | None
    author: str | None
    rebase: bool
    from_first: str | Sequence[str] | None


class Intent(NamedTuple):
    """Where a tree is to be committed, and how.

    Attributes:
        name: full name of the branch; None for a detached `HEAD`.
        details: what the commit says.
        base: what the tree changes; what was last seen of the branch, if nobody said.
        rebase: whether what only others have changed meanwhile is taken over.
        from_first: globs of leaves that only process 0 commits.
    """

    name: str | None
    details: Details
    base: Base | None
    rebase: bool
    from_first: tuple[str, ...]


class _Shared(NamedTuple):
    """A commit by all processes between its two halves.

    Attributes:
        talk: of the processes.
        held: what this process has of the tree.
        end: ends the conversation.
    """

    talk: "Conversation"
    held: "Held"
    end: ExitStack


class Writer:
    """What commits to a repository.

    Args:
        repo: where to.
        group: the processes that commit together.
        limit: says how many bytes of copies background commits may hold.

    Attributes:
        bases: what the next commit to each ref is based on.
    """

    def __init__(self, repo: Reader, group: Group, limit: Callable[[], int]):
        self._repo = repo
        self._group = group
        self.bases = Bases(repo.refs, repo.history, repo.prunings, repo.resolver)
        self._limit = limit

    @cached_property
    def committer(self) -> Committer:  # on first use, as `objects` is: `vcjax log` needs neither
        """What moves refs to new commits."""
        repo = self._repo
        return Committer(repo.refs, repo.history, repo.objects, repo.prunings)

    @cached_property
    def _background(self) -> "Background":
        from vcjax.repo.background import Background

        return Background(self._limit())

    @cached_property
    def _memo(self) -> "DigestMemo":
        from vcjax.hashing import DigestMemo

        return DigestMemo()

    def intent(
        self,
        message: str,
        branch: str | None = None,
        onto: str | Commit | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        author: str | None = None,
        rebase: bool = True,
        from_first: str | Sequence[str] | None = None,
    ) -> Intent:
        """What a user said of a commit, checked; see `Repository.commit`."""
        details = Details.checked(message, author, metadata, metrics, provenance)
        name = self.bases.target(branch)
        base = None if onto is None else self.bases.given(name, self._repo.resolve(onto))
        globs = (from_first,) if isinstance(from_first, str) else tuple(from_first or ())
        return Intent(name, details, base, rebase, globs)

    def commit(self, intent: Intent, tree: "PyTree") -> Commit:
        """Commits a tree; see `Repository.commit`."""
        from vcjax.tree import flatten

        self.settle(intent.name)
        if self._group.is_shared:
            _, take, finish = self._together(intent, tree)
            return finish(take(False))
        return self._alone(intent, flatten(tree))

    def commit_async(self, intent: Intent, tree: "PyTree") -> Future[Commit]:
        """Commits a tree in the background; see `Repository.commit_async`."""
        from vcjax.tree import flatten

        if self._group.is_shared:
            self.settle(intent.name)
            return self._background.submit(intent.name, *self._together(intent, tree))
        from vcjax.repo.snapshot import copied_bytes, needed_regions, remote_digests, snapshot

        root = flatten(tree)
        self.settle(intent.name)
        digests = remote_digests(root, self._memo)
        base = intent.base or self.bases.of(intent.name)
        before = self.bases.tip(intent.name, base).manifest
        needed = needed_regions(root, digests, before, self._repo.objects)
        return self._background.submit(
            intent.name,
            copied_bytes(root, needed),
            lambda copy: snapshot(root, needed) if copy else root,
            lambda safe: self._alone(intent, safe, digests),
        )

    def _together(
        self, intent: Intent, tree: "PyTree"
    ) -> tuple[int, Callable[[bool], _Shared], Callable[[_Shared], Commit]]:
        """A commit by all processes: the bytes of its copies, and its two halves.

        The first half exchanges parts between devices, and takes a copy where it
        is called with True. The second may run in the background.
        """
        from vcjax.processes.conversation import Conversation
        from vcjax.repo import shared_commit
        from vcjax.tree import flatten

        repo, timeout = self._repo, self._group.timeout
        talk = Conversation(repo.url, timeout)
        try:
            root = flatten(tree, spanning=True)
        except BaseException as error:
            talk.fail(error)
            raise

        def take(copy: bool) -> _Shared:
            with ExitStack() as stack:
                stack.enter_context(talk)
                held = shared_commit.hold(talk, root, timeout, copy, intent.from_first)
                return _Shared(talk, held, stack.pop_all())

        def finish(shared: _Shared) -> Commit:
            with shared.end:
                parts = talk, shared.held, repo.store, repo.settings.compress
                if talk.index != 0:
                    return repo.history.commit(shared_commit.follow(*parts))
                commit = self._record(intent, shared_commit.Leader(*parts).stage)
                talk.send({"commit": commit.digest})
                return commit

        return shared_commit.held_bytes(root, talk.count), take, finish

    def _alone(
        self,
        intent: Intent,
        root: "Node | Leaf",
        digested: "Mapping[str, LeafDigest] | None" = None,
    ) -> Commit:
        """Commits a flattened tree.

        Args:
            intent: where to.
            root: of the tree.
            digested: digests of leaves that are known already, by leaf path.
        """
        from vcjax import hashing
        from vcjax.objects.write import stage
        from vcjax.repo.snapshot import require_stored
        from vcjax.tree import leaf_dict

        known = digested or {}
        rest = {
            path: leaf
            for path, leaf in leaf_dict(root).items()
            if not leaf.spec.is_value and path not in known and not leaf.is_lazy
        }

        def staged(before: Manifest | None) -> Manifest:
            if known:
                require_stored(root, known, before)
            digests = chain(known.items(), hashing.iter_digests(rest, memo=self._memo))
            return stage(root, self._repo.objects, before, digests)

        return self._record(intent, staged)

    def _record(self, intent: Intent, staged: Callable[[Manifest | None], Manifest]) -> Commit:
        """Commits a tree.

        Args:
            intent: where to.
            staged: stores the leaves that the tree of the commit before has not.
        """
        base = intent.base or self.bases.of(intent.name)
        while True:
            tip = self.bases.tip(intent.name, base)
            change = Change(
                staged(tip.manifest), intent.details, rebase=intent.rebase, staged_on=tip.commit
            )
            try:
                return self.publish(intent.name, change, base)
            except StagedOnPrunedError:
                continue  # the tip has moved: stage on the present one

    def publish(self, name: str | None, change: Change, base: Base) -> Commit:
        """Commits what is stored already, and sees the branch at it."""
        commit = self.committer.publish(name or HEAD, change, base)
        self.bases.see(name, Base(commit.digest, change.manifest))
        return commit

    @contextmanager
    def restoring(self, revision: str | Commit, like: "PyTree") -> Iterator[Commit]:
        """The commit to be restored; if it is the tip of the branch, it is seen then."""
        if like is not None and self._group.is_shared:
            from vcjax.repo.restore import is_spanning

            if is_spanning(like):
                revision = self._group.agree(lambda: self._repo.resolve(revision).digest)
        commit, tip = self._resolve_beside_tip(revision)
        yield commit
        if tip is not None and tip.commit == commit.digest:
            self.bases.see(tip.name, self.bases.at(commit.digest))

    def _resolve_beside_tip(self, revision: str | Commit) -> tuple[Commit, Ref | None]:
        """The commit that a revision names, and what `HEAD` or its branch was at that moment.

        Were the tip read before or after, a commit that somebody makes in between
        would be taken for what this writer has seen, and its changes be undone.
        """
        refs, target = self._repo.refs, self.bases.target
        while True:
            tip = refs.get(target(None) or HEAD)
            commit = self._repo.resolve(revision)
            if refs.get(target(None) or HEAD) == tip:
                return commit, tip

    def settle(self, name: str | None) -> None:
        """Waits for the background commit to a branch, if there ever was one."""
        if "_background" in self.__dict__:
            self._background.wait(name)

    def settle_all(self) -> None:
        """Waits for all background commits; raises the first error, once."""
        if "_background" in self.__dict__:
            self._background.wait_all()

    @property
    def is_busy(self) -> bool:
        """Whether a background commit is under way."""
        return "_background" in self.__dict__ and self._background.busy
