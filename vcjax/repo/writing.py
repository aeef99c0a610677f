"""Writing to a repository: commit, now or in the background."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from vcjax import history
from vcjax.errors import ConflictError, RevisionError
from vcjax.history import Commit, Manifest, Ref
from vcjax.history.refs import HEAD, HEADS, check_name
from vcjax.repo.committing import (
    Base,
    Change,
    Committer,
    StagedOnPrunedError,
    default_author,
)
from vcjax.repo.reading import Reader
from vcjax.repo.settings import Settings
from vcjax.storage import Store

if TYPE_CHECKING:
    from vcjax.hashing import DigestMemo, LeafDigest
    from vcjax.repo.background import Background, Needed
    from vcjax.repo.processes import Conversation
    from vcjax.repo.together import Held


class _Details(NamedTuple):
    """What a commit records besides the tree, checked."""

    message: str
    author: str
    metadata: dict[str, Any]
    metrics: dict[str, float]
    provenance: dict[str, Any] | None
    rebase: bool


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


class Writer(Reader):
    """The part of `Repository` that commits.

    Attributes:
        in_flight_bytes: how many bytes of copies background commits may hold; may
            be set before the first of them.
        process_timeout_s: how long another process of the same program may give no
            sign of life before it is taken for dead, seconds. One that is alive may
            come to a commit later than the others by five times that.
    """

    in_flight_bytes: int = 2 * 1024**3
    process_timeout_s: float = 60.0

    def __init__(self, store: Store, settings: Settings, local: bool = False):
        super().__init__(store, settings)
        self.local = local
        self._committer = Committer(self.refs, self.history, self.objects, self.prunings)
        self._bases: dict[str, Base] = {}

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

        details = _details(message, metadata, metrics, provenance, author, rebase)
        name = self._target_name(branch)
        self._settle(name)
        if self.is_shared:
            _, take, finish = self._shared_commit(name, tree, details, from_first)
            return finish(take(False))
        return self._commit(name, flatten(tree), details)

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

        details = _details(message, metadata, metrics, provenance, author, rebase)
        name = self._target_name(branch)
        if self.is_shared:
            self._settle(name)
            parts = self._shared_commit(name, tree, details, from_first)
            return self._background.submit(name, *parts)
        from vcjax.repo.background import copied_bytes, snapshot

        root = flatten(tree)
        self._settle(name)
        digests = self._remote_digests(root)
        before = self._tip_of(name, self._base(name)).manifest
        needed = self._needed(root, digests, before)
        return self._background.submit(
            name,
            copied_bytes(root, needed),
            lambda copy: snapshot(root, needed) if copy else root,
            lambda safe: self._commit(name, safe, details, digests),
        )

    @property
    def is_shared(self) -> bool:
        """Whether this is one of several processes that commit to the repository together."""
        if self.local:
            return False
        from vcjax.repo.processes import several

        return several(self.url)

    def agree(
        self,
        find: Callable[..., Any],
        bring: Callable[[], Any] | None = None,
    ) -> Any:
        """What `find` gives on process 0, on all processes; they call this together.

        For decisions that must not differ, such as whether to save now. With one
        process, or a repository of its own for each, this merely calls both.

        Args:
            find: called on process 0, without arguments, or with the list of what each
                process brings. What both give must be made of MessagePack types.
            bring: called on every process before that. If it fails on one process, all fail.

        Raises:
            VcjaxError: whatever `find` raised.
            ProcessError: `bring` failed on another process, or one was not heard of
                for `process_timeout_s`.
        """
        if not self.is_shared:
            return find() if bring is None else find([bring()])
        from vcjax.repo.processes import agree

        if bring is None:
            return agree(self.url, self.process_timeout_s, lambda _: find(), lambda: None)
        return agree(self.url, self.process_timeout_s, find, bring)

    def decline(self, error: BaseException) -> None:
        """Tells the other processes that this one cannot take part in what they do next.

        To be called in the place of `commit`, `commit_async` or `agree` when something
        has failed on the way there: the others then raise a `ProcessError` in theirs,
        at once. Does nothing if there are no others.
        """
        if self.is_shared:
            from vcjax.repo.processes import Conversation

            Conversation(self.url, self.process_timeout_s).fail(error)

    def _shared_commit(
        self, name: str | None, tree: Any, details: _Details, from_first: list[str] | None
    ) -> "tuple[int, Callable[[bool], _Shared], Callable[[_Shared], Commit]]":
        """A commit by all processes: the bytes of its copies, and its two halves.

        The first half exchanges parts between devices, and takes a copy where it
        is called with True. The second may run in the background.
        """
        from vcjax.repo import together
        from vcjax.repo.processes import Conversation
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
                if talk.index == 0:
                    return self._lead(talk, name, shared.held, details)
                compress = self.settings.compress
                return self.history.commit(together.follow(talk, shared.held, self.store, compress))

        return together.held_bytes(root, talk.count), take, finish

    def _lead(
        self, talk: "Conversation", name: str | None, held: "Held", details: _Details
    ) -> Commit:
        """What process 0 does of a commit by all processes."""
        from vcjax.repo.together import Leader

        leader = Leader(talk, held, self.store, self.settings.compress)
        base = self._base(name)
        while True:
            tip = self._tip_of(name, base)
            change = Change(leader.stage(tip.manifest), *details, staged_on=tip.commit)
            try:
                commit = self._publish(name, change, base)
            except StagedOnPrunedError:
                continue  # the tip has moved: stage on the present one
            talk.send({"commit": commit.digest})
            return commit

    def _needed(
        self, root: Any, digests: "Mapping[str, LeafDigest]", before: Manifest | None
    ) -> "Needed":
        """What has to be fetched of leaves on accelerators that are not written whole."""
        from vcjax.objects import StagedLeaf
        from vcjax.tree import leaf_dict

        leaves = leaf_dict(root)
        known, former = (before.locations, before.leaves) if before else ({}, {})
        needed: dict[str, Sequence[tuple[slice, ...]]] = {}
        for path, digest in digests.items():
            if digest.leaf.hex() in known:
                needed[path] = ()
            elif path in former:
                staged = StagedLeaf(leaves[path], digest, former[path])
                regions = self.objects.needed_regions(staged)
                if regions is not None:
                    needed[path] = regions
        return needed

    def _remote_digests(self, root: Any) -> "dict[str, LeafDigest]":
        """Digests of the leaves on accelerators: those that are stored are not fetched."""
        from vcjax import hashing
        from vcjax.tree import is_remote, leaf_dict

        leaves = leaf_dict(root)
        remote = {path: leaf for path, leaf in leaves.items() if is_remote(leaf.data)}
        return hashing.digest_leaves(remote, memo=self._memo)

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
        details: _Details,
        digested: "Mapping[str, LeafDigest] | None" = None,
    ) -> Commit:
        """Commits a flattened tree.

        Args:
            digested: digests of leaves that are known already, by leaf path.
        """
        from vcjax import hashing
        from vcjax.repo.committing import stage
        from vcjax.tree import is_lazy, leaf_dict

        base, digested = self._base(name), digested or {}
        rest = {
            path: leaf
            for path, leaf in leaf_dict(root).items()
            if not leaf.spec.is_value and path not in digested and not is_lazy(leaf)
        }
        while True:
            tip = self._tip_of(name, base)
            _require_data(root, digested, tip)
            digests = chain(digested.items(), hashing.iter_digests(rest, memo=self._memo))
            manifest = stage(root, self.objects, tip.manifest, digests)
            try:
                return self._publish(name, Change(manifest, *details, staged_on=tip.commit), base)
            except StagedOnPrunedError:
                continue  # the tip has moved: stage on the present one

    def _tip_of(self, name: str | None, base: Base) -> Base:
        """The commit whose leaves need not be stored again: the branch points to it.

        Without a manifest if it was pruned, and the branch moved to it later.
        """
        ref = self.refs.get(name or HEAD)
        digest = ref.commit if ref else base.commit
        if digest is not None and self.prunings.get(digest) is not None:
            return Base(digest, None)
        return self._base_at(digest)

    def _publish(self, name: str | None, change: Change, base: Base) -> Commit:
        commit = self._committer.publish(name or HEAD, change, base)
        self._bases[name or HEAD] = Base(commit.digest, change.manifest)
        return commit

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
            from vcjax.repo.restoring import is_spanning

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
            tip = self._tip()
            commit = self.resolve(revision)
            if self._tip() == tip:
                return commit, tip

    def _tip(self) -> Ref | None:
        branch = self.head.branch
        return self.refs.get(HEAD if branch is None else HEADS + branch)


def _require_data(root: Any, digested: "Mapping[str, LeafDigest]", tip: Base) -> None:
    """Raises if a leaf that was not fetched, as the branch had it, is there no more.

    Raises:
        ConflictError: naming those leaves.
    """
    from vcjax.tree import leaf_dict

    known = tip.manifest.locations if tip.manifest else {}
    lost = [
        path
        for path, leaf in leaf_dict(root).items()
        if leaf.data is None and digested[path].leaf.hex() not in known
    ]
    if lost:
        raise ConflictError(
            "the branch has moved since the commit began, and lacks leaves that were not fetched:",
            paths=lost,
            hint="commit again",
        )


def _details(
    message: str,
    metadata: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
    author: str | None,
    rebase: bool,
) -> _Details:
    return _Details(
        message,
        author or default_author(),
        history.checked_metadata(dict(metadata or {})),
        history.checked_metrics(metrics),
        history.checked_metadata(provenance, "provenance"),
        rebase,
    )
