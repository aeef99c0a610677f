"""Writing to a repository: commit, now or in the background."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from vcjax import history
from vcjax.errors import RevisionError
from vcjax.history import Commit, Manifest, Ref
from vcjax.history.commit import Change, default_author
from vcjax.history.refnames import HEAD, HEADS, check_name
from vcjax.objects.stage import stage
from vcjax.processes.group import Participant
from vcjax.repo.commit import Base, Committer, StagedOnPrunedError
from vcjax.repo.settings import Settings
from vcjax.storage import Store

if TYPE_CHECKING:
    from vcjax.hashing import DigestMemo, LeafDigest
    from vcjax.processes.conversation import Conversation
    from vcjax.repo.background import Background
    from vcjax.repo.shared_commit import Held


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


class Tracker(Participant):
    """The part of `Repository` that keeps track of the branches it commits to."""

    def __init__(self, store: Store, settings: Settings, local: bool = False):
        super().__init__(store, settings, local)
        self._bases: dict[str, Base] = {}

    def restore(
        self,
        revision: str | Commit = "HEAD",
        like: Any = None,
        paths: list[str] | str | None = None,
        verify: bool = True,
    ) -> Any:
        """The tree of a commit; see `Reader.restore`.

        What was restored from the tip of the current branch, or from a detached
        `HEAD`, is what the next commit to it is taken to change.

        If `like` has arrays on the devices of several processes, these call this
        together: process 0 says which commit the revision is, and each reads only
        the chunks that its own devices hold parts of.
        """
        if like is not None and self.is_shared:
            from vcjax.repo.restore import is_spanning

            if is_spanning(like):
                revision = self.agree(lambda: self.resolve(revision).digest)
        commit, tip = self._resolve_beside_tip(revision)
        restored = super().restore(commit, like, paths, verify)
        if tip is not None and tip.commit == commit.digest:
            self._bases[tip.name] = self._base_at(commit.digest)
        return restored

    def _resolve_beside_tip(self, revision: str | Commit) -> tuple[Commit, Ref | None]:
        """The commit that a revision names, and what `HEAD` or its branch was at that moment.

        Were the tip read before or after, a commit that somebody makes in between
        would be taken for what this writer has seen, and its changes be undone.
        """
        while True:
            tip = self.refs.get(self._target_name(None) or HEAD)
            commit = self.resolve(revision)
            if self.refs.get(self._target_name(None) or HEAD) == tip:
                return commit, tip

    def _target_name(self, branch: str | None) -> str | None:
        """The full name of the branch to commit to; None for a detached `HEAD`."""
        if branch is not None:
            return HEADS + check_name(branch)
        head = self.refs.head()
        return None if head.branch is None else HEADS + head.branch

    def _base(self, name: str | None) -> Base:
        """What a tree that is committed to a branch is taken to be based on."""
        name = name or HEAD
        if name in self._bases:
            return self._bases[name]
        ref = self.refs.get(name)
        return self._base_at(ref.commit if ref else self._head_digest())

    def _base_at(self, digest: str | None) -> Base:
        if digest is None:
            return Base(None, None)
        return Base(digest, self.history.manifest_of(self.history.commit(digest)))

    def _head_digest(self) -> str | None:
        try:
            return self.resolver.head_digest()
        except RevisionError:  # the branch has no commit yet
            return None

    def _tip_of(self, name: str | None, base: Base) -> Base:
        """The commit whose leaves need not be stored again: the branch points to it.

        Without a manifest if it was pruned, and the branch moved to it later.
        """
        ref = self.refs.get(name or HEAD)
        digest = ref.commit if ref else base.commit
        if digest is not None and self.prunings.get(digest) is not None:
            return Base(digest, None)
        return self._base_at(digest)


class Writer(Tracker):
    """The part of `Repository` that commits.

    Attributes:
        in_flight_bytes: how many bytes of copies background commits may hold; may
            be set before the first of them.
    """

    in_flight_bytes: int = 2 * 1024**3

    @cached_property
    def _committer(self) -> Committer:  # on first use, as `objects` is: `vcjax log` needs neither
        return Committer(self.refs, self.history, self.objects, self.prunings)

    @cached_property
    def _background(self) -> "Background":
        from vcjax.repo.background import Background

        return Background(self.in_flight_bytes)

    def commit(
        self,
        tree: Any,
        message: str = "",
        *,
        branch: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        author: str | None = None,
        rebase: bool = True,
        from_first: list[str] | None = None,
    ) -> Commit:
        """Records a PyTree. Leaves whose content is stored already cost no bytes.

        If others have committed to the branch since this object last saw it, and
        they changed other leaves, the commit is rebased onto theirs.

        In a program of several processes (`jax.distributed`) every process calls
        this with its part of the same tree, as it calls every jitted function. Each
        writes the chunks that it owns, what is replicated is written once, process
        0 publishes, and all return the same commit.

        Args:
            tree: arrays, PRNG keys and plain values in any containers. Leaves that
                are `vcjax.tree.LazyArray`s are read one after the other, and freed.
            message: why.
            branch: the branch to commit to; the current one by default. A new one
                starts at `HEAD`.
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
            StorageError: the disk is full or the bucket out of reach.
            ProcessError: of several processes one failed, was not heard of for
                `process_timeout_s`, or has other values.
        """
        from vcjax.tree import flatten

        change = _change(message, author, metadata, metrics, provenance, rebase)
        name = self._target_name(branch)
        self._settle(name)
        if self.is_shared:
            _, take, finish = self._shared_commit(name, tree, change, from_first)
            return finish(take(False))
        return self._commit(name, flatten(tree), change)

    def commit_async(
        self,
        tree: Any,
        message: str = "",
        *,
        branch: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        author: str | None = None,
        rebase: bool = True,
        from_first: list[str] | None = None,
    ) -> Future[Commit]:
        """Like `commit`, in the background.

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
        from vcjax.tree import flatten

        change = _change(message, author, metadata, metrics, provenance, rebase)
        name = self._target_name(branch)
        if self.is_shared:
            self._settle(name)
            parts = self._shared_commit(name, tree, change, from_first)
            return self._background.submit(name, *parts)
        from vcjax.repo.snapshot import copied_bytes, needed_regions, remote_digests, snapshot

        root = flatten(tree)
        self._settle(name)
        digests = remote_digests(root, self._memo)
        before = self._tip_of(name, self._base(name)).manifest
        needed = needed_regions(root, digests, before, self.objects)
        return self._background.submit(
            name,
            copied_bytes(root, needed),
            lambda copy: snapshot(root, needed) if copy else root,
            lambda safe: self._commit(name, safe, change, digests),
        )

    def _shared_commit(
        self, name: str | None, tree: Any, change: "partial[Change]", from_first: list[str] | None
    ) -> "tuple[int, Callable[[bool], _Shared], Callable[[_Shared], Commit]]":
        """A commit by all processes: the bytes of its copies, and its two halves.

        The first half exchanges parts between devices, and takes a copy where it
        is called with True. The second may run in the background.
        """
        from vcjax.processes.conversation import Conversation
        from vcjax.repo import shared_commit as together
        from vcjax.tree import flatten

        talk = Conversation(self.url, self.process_timeout_s)
        try:
            root = flatten(tree, spanning=True)
        except BaseException as error:
            talk.fail(error)
            raise

        def take(copy: bool) -> _Shared:
            with ExitStack() as stack:
                stack.enter_context(talk)
                held = together.hold(talk, root, self.process_timeout_s, copy, from_first or ())
                return _Shared(talk, held, stack.pop_all())

        def finish(shared: _Shared) -> Commit:
            with shared.end:
                parts = talk, shared.held, self.store, self.settings.compress
                if talk.index != 0:
                    return self.history.commit(together.follow(*parts))
                commit = self._record(name, change, together.Leader(*parts).stage)
                talk.send({"commit": commit.digest})
                return commit

        return together.held_bytes(root, talk.count), take, finish

    @cached_property
    def _memo(self) -> "DigestMemo":
        from vcjax.hashing import DigestMemo

        return DigestMemo()

    def _settle(self, name: str | None) -> None:
        """Waits for the background commit to a branch, if there ever was one."""
        if "_background" in self.__dict__:
            self._background.wait(name)

    def wait_until_finished(self) -> None:
        """Waits for all background commits; raises the first error, once."""
        if "_background" in self.__dict__:
            self._background.wait_all()

    def refresh(self, branch: str | None = None) -> None:
        """Lets the next commit to a branch follow its tip, whoever made that.

        Otherwise a commit is taken to change what this object last committed or
        restored, and is rebased if others have committed since. For those who have
        looked at the tip, or who commit whole states.

        Args:
            branch: its name; the current one by default.

        Raises:
            Exception: that of the background commit to it, if that failed.
        """
        name = self._target_name(branch)
        self._settle(name)
        if name is not None:
            self._bases.pop(name, None)

    @property
    def is_committing(self) -> bool:
        """Whether a background commit is under way."""
        return "_background" in self.__dict__ and self._background.busy

    def _commit(
        self,
        name: str | None,
        root: Any,
        change: "partial[Change]",
        digested: "Mapping[str, LeafDigest] | None" = None,
    ) -> Commit:
        """Commits a flattened tree.

        Args:
            digested: digests of leaves that are known already, by leaf path.
        """
        from vcjax import hashing
        from vcjax.repo.snapshot import require_stored
        from vcjax.tree import is_lazy, leaf_dict

        known = digested or {}
        rest = {
            path: leaf
            for path, leaf in leaf_dict(root).items()
            if not leaf.spec.is_value and path not in known and not is_lazy(leaf)
        }

        def staged(before: Manifest | None) -> Manifest:
            require_stored(root, known, before)
            digests = chain(known.items(), hashing.iter_digests(rest, memo=self._memo))
            return stage(root, self.objects, before, digests)

        return self._record(name, change, staged)

    def _record(
        self,
        name: str | None,
        change: "partial[Change]",
        staged: Callable[[Manifest | None], Manifest],
    ) -> Commit:
        """Commits a tree.

        Args:
            change: but for the tree.
            staged: stores the leaves that the tree of the commit before has not.
        """
        base = self._base(name)
        while True:
            tip = self._tip_of(name, base)
            whole = change(staged(tip.manifest), staged_on=tip.commit)
            try:
                return self._publish(name, whole, base)
            except StagedOnPrunedError:
                continue  # the tip has moved: stage on the present one

    def _publish(self, name: str | None, change: Change, base: Base) -> Commit:
        commit = self._committer.publish(name or HEAD, change, base)
        self._bases[name or HEAD] = Base(commit.digest, change.manifest)
        return commit


def _change(
    message: str,
    author: str | None,
    metadata: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
    rebase: bool,
) -> "partial[Change]":
    """What a commit records, checked, but for the tree."""
    return partial(
        Change,
        message=message,
        author=author or default_author(),
        metadata=history.checked_metadata(dict(metadata or {})),
        metrics=history.checked_metrics(metrics),
        provenance=history.checked_metadata(provenance, "provenance"),
        rebase=rebase,
    )
