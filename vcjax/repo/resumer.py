"""Going on with merges that have conflicts, or dropping them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vcjax import history, merging
from vcjax.errors import MergeError
from vcjax.history import Commit, MergeState
from vcjax.history.refnames import HEAD, HEADS
from vcjax.history.underway import listing
from vcjax.repo.committing import default_author
from vcjax.repo.merger import Merger

if TYPE_CHECKING:
    from vcjax.merging import MergeMethod
    from vcjax.repo.conflicts import Rules
    from vcjax.repo.merging import MergeRequest
    from vcjax.repo.resuming import MergeProgress


class Resumer(Merger):
    """The part of `Repository` that goes on with merges under way."""

    def merge_progress(self, branch: str | None = None) -> "MergeProgress | None":
        """Where the merge under way into a branch stands; None if there is none.

        Args:
            branch: its name; the current one by default.
        """
        from vcjax.repo.resuming import progress_of

        target = self._target_name(branch) or HEAD
        state = self.merges.get(target)
        return None if state is None else progress_of(state, self.history, self.refs.get(target))

    def merges_under_way(self) -> "list[MergeProgress]":
        """Where all merges under way stand, by branch."""
        from vcjax.repo.resuming import progress_of

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
        from vcjax.repo.resuming import check_unmoved, is_done

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
        from vcjax.repo.merging import as_method
        from vcjax.repo.recorded import record_of_key, record_of_weights
        from vcjax.repo.resuming import decided

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
        from vcjax.repo.merging import MergeRequest, as_method
        from vcjax.repo.recorded import key_of_record, weights_of_record

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
