"""Reading a repository: revisions, manifests, restore, log and diff."""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vcjax import history
from vcjax.errors import PrunedError
from vcjax.history import Commit, Head, History, Manifest, Prunings, Refs, Resolver
from vcjax.history.refs import HEADS, TAGS
from vcjax.repo.settings import Settings
from vcjax.storage import Store

if TYPE_CHECKING:
    from vcjax.diffing import TreeDiff
    from vcjax.merging import MergePlan
    from vcjax.objects import ObjectStore


class Reader:
    """The half of `Repository` that changes nothing.

    Attributes:
        url: where it is.
        settings: from its `vcjax.json`.
        store: its keys and values.
        refs: branches, tags and `HEAD`.
        history: commits and manifests.
        prunings: which commits have let their data go.
    """

    def __init__(self, store: Store, settings: Settings):
        self.url = store.url
        self.settings = settings
        self.store = store
        self.refs = Refs(store)
        self.history = History(store)
        self.prunings = Prunings(store)
        self.resolver = Resolver(self.refs, self.history.commit, self.history.find_prefix)

    @cached_property
    def objects(self) -> "ObjectStore":
        """Leaf objects and packs."""
        from vcjax.objects import ObjectStore  # 0.03 s that `vcjax log` need not wait for

        return ObjectStore(self.store, compress=self.settings.compress)

    def __repr__(self) -> str:
        return f"Repository({self.url!r})"

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
        paths: list[str] | str | None = None,
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

        Raises:
            RevisionError: no such commit.
            StructureError: the stored tree does not fit `like`; names every path.
            CorruptionError: a leaf is damaged or gone; names its path.
            PrunedError: a retention policy let the data of this commit go.
        """
        from vcjax.repo.restoring import restore

        commit = self.resolve(revision)
        self.require_data(commit)
        manifest = self.history.manifest_of(commit)
        return restore(manifest, self.objects, like, paths, verify)

    def require_data(self, commit: Commit) -> None:
        """Raises if the data of a commit were let go.

        Raises:
            PrunedError: says when, and by which policy.
        """
        if pruning := self.prunings.get(commit.digest):
            name = f"commit {commit.digest[:8]}"
            if commit.step is not None:
                name = f"step {commit.step} ({name})"
            raise PrunedError(
                f"{name} has no data any more: {pruning}",
                hint="its manifest, metrics and message are kept: `vcjax show`, `vcjax ls`",
            )

    def log(
        self, *revisions: str | Commit, limit: int | None = None, first_parent: bool = False
    ) -> Iterator[Commit]:
        """The commits that lead to some revisions, newest first, children before parents.

        Args:
            revisions: where to start; `HEAD` by default.
            limit: how many at the most.
            first_parent: follow only the first parent of merges.
        """
        heads = [self.resolve(revision).digest for revision in revisions or ("HEAD",)]
        commits = history.walk(heads, self.history.commit, first_parent)
        for count, commit in enumerate(commits):
            if count == limit:
                return
            yield commit

    def diff(
        self,
        old: str | Commit = "HEAD~1",
        new: str | Commit = "HEAD",
        *,
        stats: bool = True,
        paths: list[str] | None = None,
    ) -> "TreeDiff":
        """What changed from one commit to another.

        Args:
            old: a revision.
            new: a revision.
            stats: whether to read the leaves that changed and compute figures.
            paths: leaf path globs: only these leaves.
        """
        from vcjax.repo.comparing import compare

        return compare(self.manifest(old), self.manifest(new), self.objects, stats, paths)

    def plan_merge(self, ours: str | Commit, theirs: str | Commit) -> "MergePlan":
        """What merging two commits would do to each leaf; reads no data and changes nothing."""
        from vcjax.repo.merging import plan_commits

        return plan_commits(self.history, self.resolve(ours), self.resolve(theirs))[0]

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
        """The current branch, or commit when detached."""
        return self.refs.head()
