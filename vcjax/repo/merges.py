"""Merging in a repository: two lines of development, or whole models."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vcjax import history, merging
from vcjax.errors import ConflictError, MergeError, RefError, listing
from vcjax.history import Commit, Manifest, MergeState, checked_metadata
from vcjax.history.commit import Change, default_author
from vcjax.history.refnames import HEAD, HEADS, check_name
from vcjax.repo.commit import Base
from vcjax.repo.writer import Writer
from vcjax.streaming.destination import StoreOutput
from vcjax.streaming.merge import Merge, as_root

if TYPE_CHECKING:
    from vcjax.merging import MergeMethod
    from vcjax.streaming.model import Model
    from vcjax.threeway.progress import MergeProgress
    from vcjax.threeway.request import MergeRequest
    from vcjax.threeway.rerun import Rerun
    from vcjax.threeway.rules import Rules

HINT = "the merge is kept: `vcjax merge --continue` goes on, `vcjax merge --abort` drops it"


class Merger(Writer):
    """The part of `Repository` that merges."""

    def merge(
        self,
        ours: str | Commit,
        *theirs: str | Commit,
        method: "MergeMethod | str | Mapping[str, Any] | None" = None,
        resolve: "Rules | None" = None,
        message: str | None = None,
        branch: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        author: str | None = None,
        weights: Any = None,
        key: Any = None,
        keep_conflicts: bool = False,
        progress: "Callable[[int, int], None] | None" = None,
    ) -> Commit:
        """Merges by history: what one side changed is taken, what several changed is settled.

        Args:
            ours: a revision. If it is a branch, that branch moves to the result.
            theirs: one or more other revisions. With only one revision given at all,
                that is merged into `HEAD`.
            method: a merge method (`vcjax.merging`) for the leaves that several changed:
                `average()`, its name, or its {"name": …, "parameters": …}. It merges
                those sides alone that changed the leaf.
            resolve: a side ("ours", "theirs", "base") for all conflicts, or
                {leaf path glob: side}; goes before `method`. Of more than two sides, all
                but "ours" are called by their revisions as given. "method" leaves a leaf
                to `method`.
            message: of the commit.
            branch: the branch that moves, if not `ours`. It must be at `ours`.
            metadata: JSON types. metrics: {name: number}. author: as for `commit`.
            weights: one number per side, for the method. key: for random methods.
            keep_conflicts: take down the merge if conflicts are left, so that
                `continue_merge` can settle them later. The branch does not move.
            progress: called with the bytes that were read for the method, and of all.

        Leaves are merged one by one (`vcjax.streaming.executor`); if the process is killed,
        the same merge goes on where it was.

        Returns:
            The merge commit; the other side itself if it merely continues `ours`, and
            `ours` if it contains all others already. Its provenance records the
            method, its parameters, the inputs and every decision.

        Raises:
            ConflictError: conflicts are left that nothing settles; names every path.
            RefError: `ours` is no branch and none is given.
            MergeError: `method` is no merge method, or cannot be applied; or a merge
                into the branch is under way.
        """
        from vcjax.merging.config import as_method
        from vcjax.threeway.progress import state_of
        from vcjax.threeway.request import MergeRequest

        method = as_method(method)
        sides: list[str | Commit] = [ours, *theirs] if theirs else ["HEAD", ours]
        name = self._merge_target(sides[0], branch)
        self.merges.refuse(name or HEAD)
        self._settle(name)
        request = MergeRequest(
            sides=tuple(map(self.resolve, sides)),
            names=tuple(map(_label, sides)),
            method=method,
            resolve=resolve,
            weights=weights,
            key=key,
            message=message,
            author=author or default_author(),
            metadata=history.checked_metadata(dict(metadata or {})),
            metrics=history.checked_metrics(metrics),
            progress=progress,
        )
        state = state_of(request, name or HEAD) if keep_conflicts else None
        return self._merged(name, request, state and partial(self.merges.start, state))

    def _merged(
        self, name: str | None, request: "MergeRequest", keep: Callable[[], None] | None = None
    ) -> Commit:
        """Merges, and moves the branch; if there are conflicts left, keeps them first."""
        from vcjax.threeway.settle import merge_commits

        ours = request.sides[0]
        try:
            outcome = merge_commits(request, self.history, self.objects)
        except ConflictError as error:
            if keep is not None:
                keep()
                error.hint = "; ".join(filter(None, [error.hint, HINT]))
            raise
        if isinstance(outcome, Commit):
            if outcome.digest != ours.digest:
                self._fast_forward(name, ours, outcome)
            return outcome
        base = Base(ours.digest, self.history.manifest_of(ours))
        commit = self._publish(name, outcome, base)
        for stored in request.stored:
            stored.forget()
        return commit

    def remerge(
        self,
        revision: str | Commit = "HEAD",
        progress: "Callable[[int, int], None] | None" = None,
    ) -> "Rerun":
        """Merges again what a merge commit says that it was merged from, and compares.

        Nothing is stored. Inputs, method, parameters, weights, key and rules are those
        of the commit's provenance.

        Args:
            revision: a merge commit.
            progress: as for `merge`.

        Raises:
            MergeError: the commit does not say how it was merged.
            PrunedError: the data of an input were let go.
        """
        from vcjax.threeway.rerun import rerun

        return rerun(self, self.resolve(revision), progress)

    def merge_models(
        self,
        models: "Sequence[Model | str | os.PathLike[str]]",
        method: "MergeMethod | str | Mapping[str, Any]",
        *,
        base: "Model | str | os.PathLike[str] | None" = None,
        weights: Any = None,
        key: Any = None,
        dtype: str | None = None,
        message: str | None = None,
        branch: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        author: str | None = None,
        progress: "Callable[[int, int], None] | None" = None,
    ) -> Commit:
        """Merges N whole models, without history, and commits the result.

        Leaves are read, merged and stored one after the other; if the process is
        killed, the same merge goes on where it was.

        Args:
            models: in any mix: revisions, paths of checkpoint files, folders of
                safetensors, what `vcjax.streaming.model` makes.
            method: see `merge`.
            base: what the models come from, for methods that need it.
            weights: one number per model, or {leaf path glob: numbers}.
            key: PRNG key or int, for random methods.
            dtype: name, of the merged leaves; the first model's by default.
            message: of the commit.
            branch: to commit to; the current one by default.
            metadata: JSON types. metrics: {name: number}. author: as for `commit`.
            progress: called with the bytes read so far, and of all.

        Returns:
            The commit. Its parent is what the branch was at; its provenance records
            method, weights and inputs, those that are commits by digest.

        Raises:
            StructureError: the models differ in leaf paths or shapes.
            MergeError: the method cannot be applied.

        Example:
            >>> repo.merge_models(["main", "other.safetensors"], "average")  # doctest: +SKIP
        """
        from vcjax.merging.config import as_method
        from vcjax.streaming.merge import Merge, to_store

        name = self._target_name(branch)
        self._settle(name)
        chosen = as_method(method)
        assert chosen is not None
        merge = Merge(
            tuple(self.model(model) for model in models),
            chosen,
            None if base is None else self.model(base),
            weights,
            key,
            dtype,
        )
        stored = to_store(merge, self.objects, progress)
        details = history.checked_metadata(dict(metadata or {})), history.checked_metrics(metrics)
        change = change_of(merge, stored, message, author or default_author(), *details)
        self.refresh(branch)  # what is merged is whole, and follows whatever is there
        commit = self._publish(name, change, self._base(name))
        stored.forget()
        return commit

    def _merge_target(self, ours: str | Commit, branch: str | None) -> str | None:
        """Full name of the branch that a merge moves; None for a detached `HEAD`."""
        if branch is not None:
            return self.refs.require(HEADS + check_name(branch)).name
        if isinstance(ours, str):
            if ours in ("HEAD", "@"):
                return None if self.head.branch is None else HEADS + self.head.branch
            name = self.resolver.ref_name(ours)
            if name is not None and name.startswith(HEADS):
                return name
        raise RefError(
            f"{_label(ours)} is no branch, so nothing would point to the result",
            hint="say which branch moves with branch= (--branch), or make one at it first",
        )

    def _fast_forward(self, name: str | None, ours: Commit, theirs: Commit) -> None:
        name = name or HEAD
        ref = self.refs.get(name)
        reason = f"merge: fast-forward to {theirs.digest[:8]}"
        known = ref is not None and ref.commit == ours.digest
        if not known or not self.refs.set(name, theirs.digest, reason, ref):
            short = name.removeprefix(HEADS)
            raise ConflictError(f"{short!r} has moved meanwhile", hint="merge again")
        self._bases.pop(name, None)


def _label(revision: str | Commit) -> str:
    return revision if isinstance(revision, str) else revision.digest[:8]


def change_of(
    merge: Merge,
    stored: StoreOutput,
    message: str | None,
    author: str,
    metadata: dict[str, Any],
    metrics: dict[str, float],
) -> Change:
    """What a commit of the merged model records."""
    names = [model.name for model in merge.models]
    return Change(
        manifest=Manifest(as_root(merge.models[0], stored.finish())),
        message=message or f"Merge {len(names)} models by {merge.method.name}: {', '.join(names)}",
        author=author,
        metadata=metadata,
        metrics=metrics,
        provenance=checked_metadata(merge.provenance(), "provenance"),
        reason="merge",
    )


class Resumer(Merger):
    """The part of `Repository` that goes on with merges under way."""

    def merge_progress(self, branch: str | None = None) -> "MergeProgress | None":
        """Where the merge under way into a branch stands; None if there is none.

        Args:
            branch: its name; the current one by default.
        """
        from vcjax.threeway.progress import progress_of

        target = self._target_name(branch) or HEAD
        state = self.merges.get(target)
        return None if state is None else progress_of(state, self.history, self.refs.get(target))

    def merges_under_way(self) -> "list[MergeProgress]":
        """Where all merges under way stand, by branch."""
        from vcjax.threeway.progress import progress_of

        return [
            progress_of(state, self.history, self.refs.get(state.target))
            for state in self.merges.all()
        ]

    def continue_merge(
        self,
        branch: str | None = None,
        *,
        method: "MergeMethod | str | Mapping[str, Any] | None" = None,
        resolve: "Rules | None" = None,
        message: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        author: str | None = None,
        weights: Any = None,
        key: Any = None,
        replan: bool = False,
        progress: "Callable[[int, int], None] | None" = None,
    ) -> Commit:
        """Goes on with a merge that `merge(…, keep_conflicts=True)` took down.

        What is decided is added to what was decided before, and taken down at once.

        Args:
            branch: which merge: that into this branch; the current one by default.
            method: as for `merge`; goes in place of the one given before.
            resolve: as for `merge`. Rules for paths go before those given before; a side
                for all conflicts is about those that are left.
            message: of the commit. metrics: likewise. author: likewise.
            weights: for the method. key: likewise.
            replan: if the branch has moved since, merge into what it is at now, with
                all that was decided.
            progress: as for `merge`.

        Returns:
            The commit, as `merge` does.

        Raises:
            ConflictError: conflicts are left still, or the branch has moved.
            MergeError: no merge is under way, or as for `merge`; then nothing is added.
        """
        from vcjax.threeway.progress import check_unmoved, is_done

        name = self._target_name(branch)
        self._settle(name)
        former = self._state(name)
        ref = self.refs.get(name or HEAD)
        tip = ref.commit if ref else None
        if is_done(former, tip, self.history):
            assert tip is not None
            self.merges.drop(former.target)
            return self.history.commit(tip)
        if not (replan and tip):
            check_unmoved(former, tip)
        state = self._decide(
            former,
            replace(former, ours=tip or former.ours),
            method=method,
            resolve=resolve,
            message=message,
            metrics=metrics,
            author=author,
            weights=weights,
            key=key,
        )
        try:
            commit = self._merged(name, self._request_of(state, progress), lambda: None)
        except MergeError:
            if state != former:
                self.merges.replace(state, former)
            raise
        self.merges.drop(state.target)
        return commit

    def decide_merge(
        self,
        branch: str | None = None,
        *,
        method: "MergeMethod | str | Mapping[str, Any] | None" = None,
        resolve: "Rules | None" = None,
        message: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        author: str | None = None,
        weights: Any = None,
        key: Any = None,
    ) -> MergeState:
        """Takes down decisions about a merge under way, and does not go on with it yet.

        Args are as for `continue_merge`.

        Raises:
            MergeError: no merge is under way, or it has no such side.
        """
        former = self._state(self._target_name(branch))
        return self._decide(
            former,
            former,
            method=method,
            resolve=resolve,
            message=message,
            metrics=metrics,
            author=author,
            weights=weights,
            key=key,
        )

    def _decide(
        self,
        former: MergeState,
        planned: MergeState,
        *,
        method: Any,
        resolve: "Rules | None",
        weights: Any,
        key: Any,
        message: str | None,
        metrics: Mapping[str, Any] | None,
        author: str | None,
    ) -> MergeState:
        """Takes down decisions.

        Args:
            former: what is noted now.
            planned: the same, perhaps into another commit; with these decisions it is noted.
        """
        from vcjax.merging.config import as_method, record_of_key, record_of_weights
        from vcjax.threeway.progress import decided

        chosen = as_method(method)
        state = decided(
            planned,
            resolve,
            None if chosen is None else merging.to_config(chosen),
            record_of_weights(weights),
            record_of_key(key),
            message=message,
            metrics=history.checked_metrics(metrics) if metrics else None,
            author=author,
        )
        if state != former:
            self.merges.replace(former, state)
        return state

    def abort_merge(self, branch: str | None = None) -> None:
        """Drops the merge under way into a branch. That is where it was.

        Args:
            branch: its name; the current one by default.

        Raises:
            MergeError: no merge is under way.
        """
        target = self._target_name(branch) or HEAD
        if not self.merges.drop(target):
            self._state(target)

    def _state(self, name: str | None) -> MergeState:
        state = self.merges.get(name or HEAD)
        if state is None:
            others = [other.short for other in self.merges.all()]
            short = (name or HEAD).removeprefix(HEADS)
            raise MergeError(
                f"no merge into {short!r} is under way",
                hint=f"one into {listing(others)} is: say --branch={others[0]}"
                if others
                else "`vcjax merge [A] B` begins one",
            )
        return state

    def _request_of(
        self, state: MergeState, progress: "Callable[[int, int], None] | None"
    ) -> "MergeRequest":
        from vcjax.merging.config import as_method, key_of_record, weights_of_record
        from vcjax.threeway.request import MergeRequest

        return MergeRequest(
            sides=tuple(map(self.history.commit, state.commits)),
            names=state.names,
            method=as_method(state.method),
            resolve=state.rules,
            weights=weights_of_record(state.weights),
            key=key_of_record(state.key),
            message=state.message,
            author=state.author or default_author(),
            metadata=state.metadata,
            metrics=state.metrics,
            progress=progress,
        )
