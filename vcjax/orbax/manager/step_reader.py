"""The half of the checkpoint manager that changes nothing."""

import os
import time
from collections.abc import Mapping
from typing import Any, cast

import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vcjax.history.listing import html_listing
from vcjax.orbax.items.handlers import Arguments, ItemHandlers
from vcjax.orbax.items.item_metadata import described
from vcjax.orbax.items.record import metrics_of
from vcjax.orbax.items.restore import restored
from vcjax.orbax.manager.keeper import StepKeeper
from vcjax.orbax.manager.policies import ranked
from vcjax.orbax.manager.step import Step, checked_step
from vcjax.repo import Repository


class StepReader(ocp.AbstractCheckpointManager):
    """Lists, describes and restores steps; part of `CheckpointManager`.

    Attributes:
        repo: the repository; everything else in vcjax works on it.
    """

    repo: Repository
    _options: ocp.CheckpointManagerOptions
    _handlers: ItemHandlers
    _keeper: StepKeeper
    _logger: ocp.logging.AbstractLogger | None

    # -- what there is ---------------------------------------------------------

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.directory}: {self._known_steps()}>"

    def _repr_html_(self) -> str:
        columns = ("step", "commit", "metrics")
        rows = [
            (str(step.step), step.commit[:8], "" if step.metrics is None else str(step.metrics))
            for step in reversed(self._checkpoints)
        ]
        title = f"{type(self).__name__} {self.directory}: {self._known_steps()}"
        return html_listing(title, columns, rows)

    def _known_steps(self) -> str:
        """The steps in a few words, from what is known; nothing is read."""
        count, latest = len(self._checkpoints), self.latest_step()
        return "no steps" if latest is None else f"{count:,} steps, the latest {latest}"

    @property
    def directory(self) -> Any:
        """The folder of the repository as `epath.Path`; the URL of one in memory."""
        return folder_of(self.repo)

    @property
    def options(self) -> ocp.CheckpointManagerOptions:
        """As they were given."""
        return self._options

    def all_steps(self, read: bool = False) -> list[int]:
        """The steps that can be restored, ascending; the one being saved included.

        Args:
            read: whether to `reload` first.
        """
        if read:
            self.reload()
        return [step.step for step in self._checkpoints]

    def latest_step(self) -> int | None:
        """The largest step; None if there is none."""
        return latest(self._keeper)

    def best_step(self) -> int | None:
        """The best step by `best_fn`, None if no step has metrics; without it the latest one."""
        if not self._track_best:
            return self.latest_step()
        best = ranked(self._checkpoints, self._options.best_mode == "min")
        return best[0].step if best else None

    def reload(self) -> None:
        """Reads the steps anew, after other programs or `vcjax switch` have changed them.

        All processes of this program call it together, as `save`, `delete` and `restore`.
        `save` and `delete` take note themselves of what others have added to the branch, and
        what is asked of one step finds it, listed or not.
        """
        self._keeper.reload()

    def metrics(self, step: int) -> PyTree:
        """The metrics of a step, also of one that was pruned; None if it has none."""
        step = checked_step(step)
        found = self._keeper.index.get(step)
        if found is not None:
            return found.metrics
        pruned = self._keeper.dropped.get(step)
        return None if pruned is None else metrics_of(self.repo.history.commit(pruned))

    def metadata(
        self, step: int | None = None
    ) -> ocp.metadata.StepMetadata | ocp.metadata.RootMetadata:
        """Orbax's `StepMetadata` of a step, or without one the `RootMetadata` of the run.

        Raises:
            FileNotFoundError: no such step.
        """
        if step is None:
            return ocp.metadata.RootMetadata(custom_metadata=dict(self._keeper.root_metadata))
        commit = self.repo.resolve(require(self._keeper, checked_step(step)).commit)
        return described(self.repo, commit, self._handlers)

    def item_metadata(self, step: int) -> PyTree[ocp.metadata.Metadata]:
        """Shapes, dtypes and shardings of the items of a step; no leaf is read.

        Returns:
            Orbax's `TreeMetadata` with an `ArrayMetadata` for each array; of several items
            a `Composite` of them. None for items that are no trees.

        Raises:
            ValueError: `step` is None.
            FileNotFoundError: no such step.
        """
        if step is None:
            raise ValueError("`step` must be provided: only steps have items")
        return cast(ocp.metadata.StepMetadata, self.metadata(step)).item_metadata

    # -- restoring -------------------------------------------------------------

    def restore(
        self,
        step: int | None = None,
        items: PyTree = None,
        restore_kwargs: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
        args: ocp.args.CheckpointArgs | None = None,
        *,
        like: PyTree = None,
    ) -> PyTree:
        """A step, verified leaf by leaf.

        Args:
            step: the latest by default.
            items: a tree to restore into, or {item name: tree}; instead of `args`.
            restore_kwargs: Orbax's oldest form of further arguments.
            directory: restore from this repository instead.
            args: one of `ocp.args`, such as `StandardRestore(abstract_tree)`; `Composite`
                for items. Without any, everything as it was saved.
            like: as for `Repository.restore`.

        Returns:
            The object, or a `Composite` of the items.

        Raises:
            VcjaxError: `step` is not an integer from 0.
            FileNotFoundError: there is no such step, or none at all.
            PrunedError: a policy let the data of this step go; says when, and which.
            StructureError: it does not fit; names every path, with both shapes.
            KeyError: there is no such item.
        """
        keeper = self._keeper if directory is None else self._keeper_of(directory)
        repo, began = keeper.repo, time.time()
        if step is None:
            step = repo.processes.agree(lambda _: latest(keeper), keeper.settle)
        else:
            step = checked_step(step)
        if step is None:
            raise FileNotFoundError(f"no step has been saved in {folder_of(repo)}")
        if repo.processes.is_shared:
            take_in(keeper, step)
        commit = repo.resolve(require(keeper, step).commit)
        if like is None and items is not None and not self._handlers.are_given:
            like = items
        if like is not None:
            result = repo.restore(commit, like)
        else:
            given: Arguments | None = args
            if args is None and (items is not None or restore_kwargs):
                given = self._handlers.to_restore(items, restore_kwargs or {})
            result = restored(repo, commit, self._handlers, given)
        self._log("restore", step, began)
        return result

    def _keeper_of(self, directory: str | os.PathLike[str]) -> StepKeeper:
        """The steps of another repository, seen as this manager sees its own."""
        repo = Repository.open(directory, local=self.repo.processes.local)
        repo.processes.timeout = self.repo.processes.timeout
        keeper = StepKeeper(repo, self._options)
        keeper.reload()
        return keeper

    def _log(self, event: str, step: int, began: float) -> None:
        if self._logger is not None:
            seconds = time.time() - began
            where = str(self.directory)
            self._logger.log_entry(
                {"step": step, "event_type": event, "directory": where, "duration_secs": seconds}
            )

    # Names without which subclasses of Orbax's manager (T5X, Kauldron) do not work.

    @property
    def _checkpoints(self) -> list[Step]:
        return self._keeper.index.ordered

    @property
    def _track_best(self) -> bool:
        return self._options.best_fn is not None


def folder_of(repo: Repository) -> Any:
    """The folder of a repository as `epath.Path`; the URL of one in memory."""
    location = repo.store.location
    if location.folder is not None:
        return epath.Path(location.folder)
    return repo.url if repo.url.startswith("memory:") else epath.Path(repo.url)


def latest(keeper: StepKeeper) -> int | None:
    """The largest step; None if there is none."""
    found = keeper.index.latest
    return None if found is None else found.step


def require(keeper: StepKeeper, step: int) -> Step:
    """A step that is to be restored.

    Raises:
        PrunedError: a policy let its data go.
        FileNotFoundError: there is none.
    """
    keeper.settle()
    found = keeper.index.get(step)
    if found is not None:
        return found
    if step in keeper.dropped:
        keeper.repo.require_data(keeper.repo.history.commit(keeper.dropped[step]))
    found = keeper.beside(step)
    if found is not None:
        return found
    known = ", ".join(str(other.step) for other in keeper.index.ordered[-5:]) or "none"
    raise FileNotFoundError(
        f"there is no step {step} in {folder_of(keeper.repo)}; the latest are: {known}"
    )


def take_in(keeper: StepKeeper, step: int) -> None:
    """Sees to it that all processes know a step that others have saved, or none does."""

    def is_unknown() -> bool:
        keeper.settle()
        return step not in keeper.index and step not in keeper.dropped

    if keeper.repo.processes.agree(any, is_unknown):
        keeper.follow(keeper.settle)
