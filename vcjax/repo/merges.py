"""`repo.merges`: merging by history, now or in several sittings, and merging again."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from vcjax.errors import ConflictError, MergeError, RefError, listing
from vcjax.history import Commit, Manifest, MergeRequest
from vcjax.history.commit import Change, Details
from vcjax.history.refnames import HEAD, HEADS, check_name
from vcjax.repo.reader import Reader, name_of
from vcjax.repo.writer import Writer

if TYPE_CHECKING:
    import jax
    from numpy.typing import ArrayLike

    from vcjax.merging import MergeMethod
    from vcjax.streaming import Model
    from vcjax.threeway import Decision
    from vcjax.threeway.progress import MergeProgress
    from vcjax.threeway.request import Decisions
    from vcjax.threeway.rerun import Rerun
    from vcjax.threeway.settle import Settled

HINT = "the merge is kept: `repo.merges.resume()` goes on, `repo.merges.abort()` drops it"
SHELL_HINT = "the merge is kept: `vcjax merge --continue` goes on, `vcjax merge --abort` drops it"

Progress = Callable[[int, int], None]
"""Called with the bytes that were read so far, and of all."""


class WholeMergeOptions(TypedDict, total=False):
    """What may be said of a merge of whole models; see `Merges.whole`."""

    base: "Model | str | os.PathLike[str] | Commit | None"
    weights: "Mapping[str, ArrayLike] | ArrayLike | None"
    key: "int | jax.Array | None"
    dtype: str | None
    branch: str | None
    message: str | None
    author: str | None
    metadata: Mapping[str, Any] | None
    metrics: Mapping[str, Any] | None
    progress: Progress | None


class Merges:
    """Merging lines of development of a repository.

    A merge that has conflicts left may be kept: its `MergeRequest` is taken down, decisions
    are added to it (`decide`), and it goes on (`resume`) or is dropped (`abort`). At the most
    one is under way into each branch, and the branch does not move before it is done.

    Args:
        repo: the repository.
        writer: what commits to it.
    """

    def __init__(self, repo: Reader, writer: Writer):
        self._repo = repo
        self._writer = writer
        self._kept = repo.kept_merges

    def __repr__(self) -> str:
        return f"<Merges of {self._repo!r}>"

    def start(
        self,
        *revisions: str | Commit,
        branch: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep_conflicts: bool = False,
        progress: Progress | None = None,
        **decisions: Unpack["Decisions"],
    ) -> Commit:
        """Begins a merge, and carries it out if nothing is left to decide.

        See `Repository.merge`, which is this.
        """
        from vcjax.threeway.request import asked

        sides = revisions if len(revisions) > 1 else ("HEAD", *revisions)
        if len(sides) < 2:
            raise MergeError("there is nothing to merge", hint="give at least one revision")
        name = self._target(sides[0], branch)
        self._kept.refuse(name or HEAD)
        self._writer.settle(name)
        commits, names = [self._repo.resolve(side) for side in sides], map(name_of, sides)
        request = asked(name or HEAD, commits, tuple(names), decisions, metadata)
        try:
            return self._carry_out(request, progress, decisions.get("method"))
        except ConflictError as error:
            if keep_conflicts:
                self._kept.start(request)
                error.add_hint(HINT, SHELL_HINT)
            raise

    def get(self, branch: str | None = None) -> "MergeProgress | None":
        """Where the merge under way into a branch stands; None if there is none.

        Args:
            branch: its name; the current one by default.
        """
        request = self._kept.get(self._writer.bases.target(branch) or HEAD)
        return None if request is None else self._progress_of(request)

    def all(self) -> "list[MergeProgress]":
        """Where all merges under way stand, by branch."""
        return [self._progress_of(request) for request in self._kept.all()]

    def _progress_of(self, request: MergeRequest) -> "MergeProgress":
        from vcjax.threeway.progress import progress_of

        return progress_of(request, self._repo.history, self._repo.refs.get(request.target))

    def decide(self, branch: str | None = None, **decisions: Unpack["Decisions"]) -> MergeRequest:
        """Takes down decisions about a merge under way, and does not go on with it yet.

        Args:
            branch: which merge: that into this branch; the current one by default.
            decisions: as for `Repository.merge`. Rules for paths go before those given
                before; a side for all conflicts is about those that are left; a method
                goes in the place of the one given before.

        Raises:
            MergeError: no merge is under way, it has no such side, or somebody else
                has gone on with it meanwhile.
        """
        former = self._under_way(branch)
        return self._decided(former, former, decisions)

    def resume(
        self,
        branch: str | None = None,
        *,
        replan: bool = False,
        progress: Progress | None = None,
        **decisions: Unpack["Decisions"],
    ) -> Commit:
        """Goes on with a merge that was kept.

        What is decided is added to what was decided before, and taken down at once.

        Args:
            branch: which merge: that into this branch; the current one by default.
            replan: if the branch has moved since, merge into what it is at now, with
                all that was decided.
            progress: as for `Repository.merge`.
            decisions: as for `decide`.

        Returns:
            The commit, as `Repository.merge` does.

        Raises:
            ConflictError: conflicts are left still, or the branch has moved.
            MergeError: no merge is under way, or as for `Repository.merge`; then nothing
                is added.
        """
        from vcjax.threeway.progress import check_unmoved, is_done

        self._writer.settle(self._writer.bases.target(branch))
        former = self._under_way(branch)
        ref = self._repo.refs.get(former.target)
        tip = ref.commit if ref else None
        if is_done(former, tip, self._repo.history):
            assert tip is not None
            self._kept.drop(former.target)
            return self._repo.history.commit(tip)
        if not (replan and tip):
            check_unmoved(former, tip)
        request = self._decided(former, replace(former, ours=tip or former.ours), decisions)
        try:
            commit = self._carry_out(request, progress, decisions.get("method"))
        except ConflictError as error:
            error.add_hint(HINT, SHELL_HINT)
            raise
        except MergeError:
            if request != former:
                self._kept.replace(request, former)
            raise
        self._kept.drop(request.target)
        return commit

    def abort(self, branch: str | None = None) -> None:
        """Drops the merge under way into a branch. That is where it was.

        Args:
            branch: its name; the current one by default.

        Raises:
            MergeError: no merge is under way.
        """
        if not self._kept.drop(self._writer.bases.target(branch) or HEAD):
            self._under_way(branch)

    def whole(
        self,
        models: "Sequence[Model | str | os.PathLike[str] | Commit]",
        method: "MergeMethod | str | Mapping[str, Any]",
        *,
        base: "Model | str | os.PathLike[str] | Commit | None" = None,
        weights: "Mapping[str, ArrayLike] | ArrayLike | None" = None,
        key: "int | jax.Array | None" = None,
        dtype: str | None = None,
        branch: str | None = None,
        message: str | None = None,
        author: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Commit:
        """Merges N whole models, without history, and commits the result.

        Leaves are read, merged and stored one after the other; if the process is
        killed, the same merge goes on where it was.

        Args:
            models: in any mix: revisions, paths of checkpoint files, folders of
                safetensors, what `vcjax.streaming.model` makes.
            method: see `Repository.merge`.
            base: what the models come from, for methods that need it.
            weights: one number per model, or {leaf path glob: numbers}.
            key: PRNG key or int, for random methods.
            dtype: name, of the merged leaves; the first model's by default.
            branch: to commit to; the current one by default.
            message: of the commit.
            author: as for `Repository.commit`.
            metadata: JSON types.
            metrics: {name: number}.
            progress: called with the bytes read so far, and of all.

        Returns:
            The commit. Its parent is what the branch was at; its provenance records
            method, weights and inputs, those that are commits by digest.

        Raises:
            StructureError: the models differ in leaf paths or shapes.
            MergeError: the method cannot be applied.
        """
        from vcjax.merging.config import as_method
        from vcjax.streaming.merge import Merge, as_root, to_store

        name = self._writer.bases.target(branch)
        self._writer.settle(name)
        inputs = tuple(map(self._repo.model, models))
        origin = None if base is None else self._repo.model(base)
        chosen = as_method(method)
        assert chosen is not None
        merge = Merge(inputs, chosen, origin, weights, key, dtype)
        details = Details.checked(
            message or merge.message, author, metadata, metrics, merge.provenance()
        )
        stored = to_store(merge, self._repo.objects, progress)
        manifest = Manifest(as_root(inputs[0], stored.finish()))
        self._writer.bases.forget(name)  # what is merged is whole, and follows whatever is there
        change = Change(manifest, details, reason="merge")
        commit = self._writer.publish(name, change, self._writer.bases.of(name))
        stored.forget()
        return commit

    def rerun(self, revision: str | Commit = "HEAD", progress: Progress | None = None) -> "Rerun":
        """Merges again what a merge commit says that it was merged from, and compares.

        Nothing is stored. Inputs, method, parameters, weights, key and rules are those
        of the commit's provenance.

        Args:
            revision: a merge commit.
            progress: as for `Repository.merge`.

        Raises:
            MergeError: the commit does not say how it was merged.
            PrunedError: the data of an input were let go.
        """
        from vcjax.threeway.rerun import rerun

        return rerun(self._repo, self._repo.objects, self._repo.resolve(revision), progress)

    def _under_way(self, branch: str | None) -> MergeRequest:
        """The merge under way into a branch.

        Raises:
            MergeError: there is none.
        """
        name = self._writer.bases.target(branch) or HEAD
        request = self._kept.get(name)
        if request is None:
            hint = "`repo.merge(theirs)` begins one"
            shell_hint = "`vcjax merge [A] B` begins one"
            if others := [other.short for other in self._kept.all()]:
                hint = f"one into {listing(others)} is: say branch={others[0]!r}"
                shell_hint = f"one into {listing(others)} is: say --branch={others[0]}"
            raise MergeError(
                f"no merge into {name.removeprefix(HEADS)!r} is under way",
                hint=hint,
                shell_hint=shell_hint,
            )
        return request

    def _decided(
        self, former: MergeRequest, planned: MergeRequest, decisions: "Decisions"
    ) -> MergeRequest:
        """Takes down decisions.

        Args:
            former: what is noted now.
            planned: the same, perhaps into another commit; with these decisions it is noted.
            decisions: what is added.
        """
        from vcjax.threeway.request import decided

        request = decided(planned, decisions)
        if request != former:
            self._kept.replace(former, request)
        return request

    def _carry_out(
        self,
        request: MergeRequest,
        progress: Progress | None,
        method: "MergeMethod | str | Mapping[str, Any] | None",
    ) -> Commit:
        """Merges, and moves the branch.

        Args:
            request: what is asked.
            progress: see `Progress`.
            method: that of the request as it was given just now, if it was.
        """
        from vcjax.threeway.settle import contained, default_message, settle

        history = self._repo.history
        ours = history.commit(request.ours)
        whole = contained(request, history)
        if whole is not None:
            if whole != ours:
                self._fast_forward(request.target, ours, whole)
            return whole

        def by_method(conflicts: Mapping[str, "Decision"], request: MergeRequest) -> "Settled":
            from vcjax.threeway.by_method import into_store  # JAX, which other merges do without

            return into_store(conflicts, request, self._repo.objects, progress, method)

        outcome = settle(request, history, by_method)
        details = Details.checked(
            request.message or default_message(outcome.request),
            request.author,
            request.metadata,
            request.metrics,
            outcome.provenance,
        )
        change = Change(
            outcome.manifest, details, extra_parents=outcome.request.theirs, reason="merge"
        )
        base = self._writer.bases.at(ours.digest)
        name = None if request.target == HEAD else request.target
        commit = self._writer.publish(name, change, base)
        if outcome.stored is not None:
            outcome.stored.forget()
        return commit

    def _target(self, ours: str | Commit, branch: str | None) -> str | None:
        """Full name of the branch that a merge moves; None for a detached `HEAD`."""
        if branch is not None:
            return self._repo.refs.require(HEADS + check_name(branch)).name
        if isinstance(ours, str):
            if ours in ("HEAD", "@"):
                return self._writer.bases.target(None)
            name = self._repo.resolver.ref_name(ours)
            if name is not None and name.startswith(HEADS):
                return name
        raise RefError(
            f"{name_of(ours)} is no branch, so nothing would point to the result",
            hint="say which branch moves with branch=, or make one at it first",
            shell_hint="say which branch moves with --branch, or make one at it first",
        )

    def _fast_forward(self, target: str, ours: Commit, theirs: Commit) -> None:
        ref = self._repo.refs.get(target)
        reason = f"merge: fast-forward to {theirs.digest[:8]}"
        known = ref is not None and ref.commit == ours.digest
        if not known or not self._repo.refs.set(target, theirs.digest, reason, ref):
            short = target.removeprefix(HEADS)
            raise ConflictError(f"{short!r} has moved meanwhile", hint="merge again")
        self._writer.bases.forget(None if target == HEAD else target)
