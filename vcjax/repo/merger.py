"""Merging in a repository: two lines of development, or whole models."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcjax import history
from vcjax.errors import ConflictError, RefError
from vcjax.history import Commit
from vcjax.history.refnames import HEAD, HEADS, check_name
from vcjax.repo.committing import Base, default_author
from vcjax.repo.writing import Writer

if TYPE_CHECKING:
    from vcjax.merging import MergeMethod
    from vcjax.repo.models import Model


class Merger(Writer):
    """The part of `Repository` that merges."""

    def merge(
        self,
        ours: str | Commit,
        theirs: str | Commit | None = None,
        *,
        method: "MergeMethod | str | Mapping[str, Any] | None" = None,
        resolve: Mapping[str, str] | str | None = None,
        message: str | None = None,
        branch: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        author: str | None = None,
        weights: Any = None,
        key: Any = None,
        progress: "Callable[[int, int], None] | None" = None,
    ) -> Commit:
        """Three-way merge: what one side changed is taken, what both changed is settled.

        Args:
            ours: a revision. If it is a branch, that branch moves to the result.
            theirs: another revision. With only one given, it is merged into `HEAD`.
            method: a merge method (`vcjax.merging`) for the leaves that both changed:
                `average()`, its name, or its {"name": …, "parameters": …}.
            resolve: a side ("ours", "theirs", "base") for all conflicts, or
                {leaf path glob: side}; goes before `method`.
            message: of the commit.
            branch: the branch that moves, if not `ours`. It must be at `ours`.
            metadata: JSON types. metrics: {name: number}. author: as for `commit`.
            weights: one number per side, for the method. key: for random methods.
            progress: called with the bytes that were read for the method, and of all.

        Leaves are merged one by one (`vcjax.repo.executing`); if the process is killed,
        the same merge goes on where it was.

        Returns:
            The merge commit; `theirs` itself if it merely continues `ours`, and
            `ours` if it contains `theirs` already. Its provenance records the
            method, its parameters, the inputs and every decision.

        Raises:
            ConflictError: conflicts are left that nothing settles; names every path.
            RefError: `ours` is no branch and none is given.
            MergeError: `method` is no merge method, or cannot be applied.
        """
        from vcjax.repo.merging import MergeRequest, as_method, merge_commits

        method = as_method(method)
        if theirs is None:
            ours, theirs = "HEAD", ours
        name = self._merge_target(ours, branch)
        self._settle(name)
        request = MergeRequest(
            ours=self.resolve(ours),
            theirs=self.resolve(theirs),
            names=(_label(ours), _label(theirs)),
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
        outcome = merge_commits(request, self.history, self.objects)
        if isinstance(outcome, Commit):
            if outcome.digest != request.ours.digest:
                self._fast_forward(name, request.ours, outcome)
            return outcome
        base = Base(request.ours.digest, self.history.manifest_of(request.ours))
        commit = self._publish(name, outcome, base)
        for stored in request.stored:
            stored.forget()
        return commit

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
                safetensors, what `vcjax.repo.models` makes.
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
        from vcjax.repo.merging import as_method
        from vcjax.repo.merging_models import Merge, change_of, to_store

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
