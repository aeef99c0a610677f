"""What the next commit to each ref is based on. It is held here, and nowhere else.

A tree that is committed is taken to *change* the state that its writer last saw of the
branch: what this object last committed to it, or restored from its tip. The first commit
to a branch that this object has not seen takes what the branch is at for seen.
`refresh` forgets what was seen, so that the next commit follows the tip as it is, and
`commit(…, onto=REV)` says in place of all that what the tree was made from.

If the branch has moved since, the commit is rebased: leaves that only others changed are
theirs, and leaves that both changed are a conflict (`vcjax.repo.commit`).
"""

from dataclasses import dataclass

from vcjax.errors import RefError, RevisionError
from vcjax.history import Commit, History, Manifest, Prunings, Refs, Resolver, is_ancestor
from vcjax.history.refnames import HEAD, HEADS, check_name


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


class Bases:
    """What was last seen of each ref that is committed to.

    Refs are named in full; None is a detached `HEAD`.
    """

    def __init__(self, refs: Refs, history: History, prunings: Prunings, resolver: Resolver):
        self._refs = refs
        self._history = history
        self._prunings = prunings
        self._resolver = resolver
        self._seen: dict[str, Base] = {}

    def target(self, branch: str | None) -> str | None:
        """The full name of the branch to commit to, the current one by default."""
        if branch is not None:
            return HEADS + check_name(branch)
        head = self._refs.head()
        return None if head.branch is None else HEADS + head.branch

    def of(self, name: str | None) -> Base:
        """What the next tree that is committed to a ref is taken to change."""
        if (name or HEAD) in self._seen:
            return self._seen[name or HEAD]
        ref = self._refs.get(name or HEAD)
        return self.at(ref.commit if ref else self.head_digest())

    def given(self, name: str | None, onto: Commit) -> Base:
        """The state that a tree for a ref is said to change.

        Raises:
            RefError: it does not lead to what the ref is at.
        """
        ref = self._refs.get(name or HEAD)
        if ref is not None and not is_ancestor(onto.digest, ref.commit, self._history.commit):
            raise RefError(
                f"{onto.digest[:8]} does not lead to {ref.short!r}, which is at {ref.commit[:8]}",
                hint="commit to a branch that comes from it with branch=, and merge",
                shell_hint="commit to a branch that comes from it with --branch, and merge",
            )
        return self.at(onto.digest)

    def at(self, digest: str | None) -> Base:
        """The state of a commit; None is none."""
        if digest is None:
            return Base(None, None)
        return Base(digest, self._history.manifest_of(self._history.commit(digest)))

    def tip(self, name: str | None, base: Base) -> Base:
        """The commit whose leaves need not be stored again: the ref points to it.

        Without a manifest if it was pruned, and the branch moved to it later.
        """
        ref = self._refs.get(name or HEAD)
        digest = ref.commit if ref else base.commit
        if digest is not None and self._prunings.get(digest) is not None:
            return Base(digest, None)
        return self.at(digest)

    def see(self, name: str | None, base: Base) -> None:
        """Takes down what was seen of a ref."""
        self._seen[name or HEAD] = base

    def forget(self, name: str | None) -> None:
        """Lets the next commit to a ref follow it as it is."""
        self._seen.pop(name or HEAD, None)

    def head_digest(self) -> str | None:
        """The commit that `HEAD` is at; None if its branch has none yet."""
        try:
            return self._resolver.head_digest()
        except RevisionError:
            return None
