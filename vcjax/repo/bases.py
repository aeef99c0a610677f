"""What the next commit to each branch is based on: the state that this object last saw."""

from typing import Any

from vcjax.errors import RevisionError
from vcjax.history import Commit, Ref
from vcjax.history.refnames import HEAD, HEADS, check_name
from vcjax.repo.agreeing import Participant
from vcjax.repo.committing import Base
from vcjax.repo.settings import Settings
from vcjax.storage import Store


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
