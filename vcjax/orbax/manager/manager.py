"""`CheckpointManager`: Orbax's calls; every save is a commit."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_manager as theirs
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.handlers import CheckpointHandlerRegistry

from vcjax.errors import StepExistsError, VcjaxError
from vcjax.history import checked_metadata
from vcjax.orbax.items.record import StepMetrics, StepRecord, step_metadata
from vcjax.orbax.items.save import from_first, staged
from vcjax.orbax.items.shared_save import Sharing
from vcjax.orbax.manager.keeper import StepKeeper, Told
from vcjax.orbax.manager.open import Checkpointers, Handlers, handlers_of, open_repository
from vcjax.orbax.manager.options import CheckpointManagerOptions, added
from vcjax.orbax.manager.policies import Retention, as_policies_see, is_pure, rate, save_policy
from vcjax.orbax.manager.step import Plan, Step, checked_step, same_step
from vcjax.orbax.manager.step_reader import StepReader, require


class StepAlreadyExistsError(StepExistsError, theirs.StepAlreadyExistsError):
    """A step was saved already; Orbax's error too."""


class CheckpointManager(StepReader):
    """Saves and restores the steps of a training run in a repository.

    Has the calls of `orbax.checkpoint.CheckpointManager`, and a simpler form of each: a tree
    instead of `args=`. Each step is a commit on the current branch whose metadata hold the
    step, so everything else in vcjax works on it: `step:120` is a revision, `vcjax log`
    shows the metrics, `vcjax diff step:100 step:120` what training changed.

    In a program of several processes (`jax.distributed`) each makes a manager of the same
    repository and makes the same calls of `save`, `restore`, `reload`, `delete`; process 0
    decides for all. `options.multiprocessing_options.primary_host=None` is for a repository
    of each process.

    Several managers may save to one branch. The tree of a step is a whole state:
    each step follows the one saved before it, by whomever, and nothing is merged.

    Example:
        >>> import tempfile, numpy as np
        >>> with CheckpointManager(tempfile.mkdtemp()) as manager:
        ...     saved = manager.save(1, {"w": np.ones(3)}, metrics={"loss": 0.5})
        ...     manager.latest_step()
        1

    Args:
        directory: path or URL of the repository.
        checkpointers: in Orbax's oldest form, a checkpointer or {item name: checkpointer}.
            Options are taken for `options`.
        options: what to save and keep.
        metadata: of the run, JSON types; written at once, and kept with every step. What was
            given first stands.
        item_names: names of the items of each step.
        item_handlers: a handler, or {item name: handler}.
        logger: gets an entry for each save and restore.
        handler_registry: Orbax's registry of handlers.

    Raises:
        RepositoryNotFoundError: there is no such folder, and `options.create` is off.
        ValueError: arguments that exclude each other.
    """

    _async: bool
    _save_policy: policies.SaveDecisionPolicy
    _retention: Retention
    _root_metadata: dict[str, object] | None

    def __init__(
        self,
        directory: str | os.PathLike[str],
        checkpointers: Checkpointers | ocp.CheckpointManagerOptions | None = None,
        options: ocp.CheckpointManagerOptions | None = None,
        metadata: Mapping[str, object] | None = None,
        item_names: Sequence[str] | None = None,
        item_handlers: Handlers | None = None,
        logger: ocp.logging.AbstractLogger | None = None,
        handler_registry: CheckpointHandlerRegistry | None = None,
    ):
        if hasattr(checkpointers, "save_interval_steps"):
            checkpointers, options = None, cast(ocp.CheckpointManagerOptions, checkpointers)
        self._options = options or CheckpointManagerOptions()
        self._overwrites = bool(added(self._options, "overwrite"))
        self._has_folders = bool(added(self._options, "step_folders"))
        self._logger = logger
        self._decides = False  # whether this is process 0, asked by all of them

        def prepare() -> None:
            self._handlers, self._async = handlers_of(
                cast(Checkpointers | None, checkpointers),
                item_names,
                item_handlers,
                handler_registry,
                self._options,
            )
            callback = getattr(self._options.async_options, "post_finalization_callback", None)
            if callback is not None and not self._async:
                raise ValueError("post_finalization_callback is for saves in the background")
            self._save_policy = save_policy(self._options)
            self._retention = Retention(self._options)
            self._root_metadata = None if metadata is None else checked_metadata(dict(metadata))

        self.repo = open_repository(directory, self._options, prepare)
        self._keeper = StepKeeper(self.repo, self._options, str(self._retention))
        kept = self._options.save_root_metadata and not self._options.read_only
        self._keeper.reload(self._root_metadata if kept else None)
        if self._options.read_only and not self._keeper.root_metadata:
            self._keeper.root_metadata = self._root_metadata or {}

    # -- saving ----------------------------------------------------------------

    def reached_preemption(self, step: int) -> bool:
        """Whether this process is about to be ended, and all have agreed on this step."""
        return ocp.utils.reached_preemption(step)

    def should_save(self, step: int) -> bool:
        """Whether `save` would save this step: later than all others, and the policy agrees.

        Of several processes, process 0 decides for all, which call this together. Where the
        policy looks at nothing but numbers of steps, each finds the same by itself.
        """
        step = checked_step(step)
        if self._options.read_only:
            if self._keeper.leads:
                logging.warning("%s is read-only: step %d is not saved", self.directory, step)
            return False
        if self._decides or self._says_the_same_everywhere:
            return self._policy_agrees(step)
        return self.repo.processes.agree(
            lambda _: self._policy_agrees(step), lambda: self.reached_preemption(step)
        )

    @property
    def _says_the_same_everywhere(self) -> bool:
        """Whether no process has to be asked about whether to save."""
        if not self.repo.processes.is_shared:
            return True
        mine = type(self).should_save is CheckpointManager.should_save
        return mine and is_pure(self._save_policy)

    def _policy_agrees(self, step: int) -> bool:
        latest = self.latest_step()
        if latest is not None and latest >= step:
            return False
        check = self._options.enable_should_save_is_saving_in_progress_check
        context = policies.DecisionContext(
            is_saving_in_progress=check and self.is_saving_in_progress(),
            reached_preemption=self.reached_preemption(step),
            multiprocessing_options=self._options.multiprocessing_options,
        )
        now, *before = as_policies_see([Step(step, datetime.now(UTC)), *self._checkpoints])
        return self._save_policy.should_save(now, before, context=context)

    def save(
        self,
        step: int,
        items: PyTree = None,
        save_kwargs: Mapping[str, Any] | None = None,
        metrics: PyTree = None,
        force: bool | None = False,
        args: ocp.args.CheckpointArgs | None = None,
        custom_metadata: Mapping[str, object] | None = None,
        *,
        overwrite: bool | None = None,
        message: str | None = None,
    ) -> bool:
        """Commits a step. Leaves that did not change cost no bytes.

        Args:
            step: number of the step, from 0.
            items: a PyTree, or {item name: object} for a manager of items; instead of `args`.
            save_kwargs: Orbax's oldest form of further arguments, for managers that were
                given handlers or checkpointers; for others a third positional argument is
                the metrics.
            metrics: {name: number}, or whatever JSON can hold; without any the step has no
                rank.
            force: save although the policy, or a later step, says otherwise.
            args: one of `ocp.args`, such as `StandardSave(tree)`; `Composite` for items.
            custom_metadata: of the step, JSON types.
            overwrite: let the step stand for this tree from now on. The earlier
                one stays in history. By default as in the options.
            message: of the commit; "step N" by default.

        Returns:
            Whether it is saved; a later one, or the same, may be there already.

        Raises:
            StepAlreadyExistsError: it is to be saved by force or since the policy says so,
                exists already, and not `overwrite`.
            VcjaxError: `step` is not an integer from 0, or `best_fn` fails.
            ValueError: there is nothing to save, or arguments of the wrong kind.
            Exception: that of the step saved in the background before, if that
                failed. This step is not saved then.
        """
        began = time.time()
        if overwrite is None:
            overwrite = self._overwrites
        if save_kwargs and metrics is None and not self._handlers.are_given:
            save_kwargs, metrics = None, save_kwargs
        asks = not (force or overwrite)
        if self._options.read_only or (asks and self._says_the_same_everywhere):
            if self._options.read_only or not self.should_save(step):
                checked_step(step)
                if not self.repo.processes.is_shared:  # else it would take a message to fail alike
                    self._handlers.check(items, args)
                return False
            asks = False

        def check() -> int:
            self._handlers.check(items, args)
            if asks:
                self.reached_preemption(checked_step(step))  # JAX wants to hear it of all
            return checked_step(step)

        plan = self._planned(check, asks, bool(overwrite), metrics)
        if plan is None:
            return False
        with Sharing(self.repo, plan.token) as sharing:
            saved = self._handlers.to_save(items, save_kwargs or {}, args)
            single = bool(self._handlers.single)
            with staged(self._handlers, saved, single, sharing) as (tree, records):
                hidden = self._options.prevent_write_metrics
                found = StepMetrics() if hidden else StepMetrics.of(plan.step.metrics)
                record = StepRecord(
                    records,
                    single,
                    found.nested,
                    step_metadata(custom_metadata),
                    self._keeper.root_metadata,
                )
                commit = self.repo.commit_async if self._async else self.repo.commit
                sharing.is_over = True  # what fails from here on, the commit tells
                self._keeper.begin(
                    plan.step,
                    lambda: commit(
                        tree,
                        message or f"step {plan.step.step}",
                        metadata=record.encode(plan.step.step),
                        metrics=found.numbers,
                        rebase=False,  # a step is a whole state, and nothing is merged into it
                        from_first=from_first(records, single),
                    ),
                    plan.gone,
                    list(records) if args and self._has_folders else None,
                )
        self._log("save", plan.step.step, began)
        return True

    def _planned(
        self, check: Callable[[], int], asks: bool, overwrite: bool, metrics: PyTree
    ) -> Plan | None:
        """What is to be saved, found by process 0 for all; None if nothing is.

        Args:
            check: gives the step; called on every process, and what fails there fails on all.
            asks: whether the policy is to be asked.
        """
        keeper = self._keeper
        brought_stale = keeper.is_stale

        def find(brought: Sequence[tuple[int, bool]]) -> Told | None:
            step = same_step([step for step, _ in brought])
            if asks and not self._decided(step):
                return None
            keeper.settle()
            keeper.raise_failure(instead_of=step)
            news = keeper.take_news(any(stale for _, stale in brought))
            known = keeper.index.get(step)
            if known is not None and not overwrite:
                return Told(news=news, exists=(step, known.commit))
            plain = StepMetrics.of(metrics).plain
            score = rate(step, plain, self._options)  # fails before anything is committed
            made = Step(step, datetime.now(UTC), plain, score=score)
            gone = keeper.old_steps(made, self._get_old_steps_to_remove)
            return Told(news=news, plan=Plan(made, gone).told())

        told = keeper.agree(find, lambda: (check(), brought_stale))
        if told is None:
            return None
        if "exists" in told:
            step, commit = told["exists"]
            raise StepAlreadyExistsError(
                f"step {step} was saved already, as commit {commit[:8]}",
                hint="overwrite=True replaces it; its former state stays in `vcjax log`",
            )
        assert "plan" in told
        return Plan.of(told["plan"])

    def _decided(self, step: int) -> bool:
        """What `should_save` says, also that of a subclass, on process 0 alone."""
        self._decides = True
        try:
            return self.should_save(step)
        finally:
            self._decides = False

    def wait_until_finished(self) -> None:
        """Waits for the step that is being saved, and for the data that it lets go.

        Raises:
            Exception: what went wrong, once. The step is not among `all_steps` then.
        """
        self._keeper.finish()

    def is_saving_in_progress(self) -> bool:
        """Whether a step is being saved."""
        return self._keeper.is_saving

    def check_for_errors(self) -> None:
        """Raises what went wrong with the step that was saved last, once; waits for nothing."""
        if self._keeper.has_failed:
            self._keeper.settle()
            self._keeper.raise_failure()

    # -- the rest --------------------------------------------------------------

    def delete(self, step: int) -> None:
        """Lets the data of a step go. The commit stays in the log.

        A commit that the branch points to, as to the latest step's, cannot lose its data:
        the branch is moved back to the one before (`vcjax log --reflog` still has it).

        Raises:
            FileNotFoundError: no such step.
            VcjaxError: another branch or a tag points to it; or `step` is not an integer
                from 0.
        """
        step = checked_step(step)
        if self._options.read_only:
            if self._keeper.leads:
                logging.warning("%s is read-only: step %d is not deleted", self.directory, step)
            return
        self._keeper.follow(self.wait_until_finished)
        found = require(self._keeper, step)
        if not self._keeper.delete(found):
            raise VcjaxError(
                f"step {step} is not deleted: a branch, a tag or HEAD points to its commit "
                f"{found.commit[:8]}",
                hint="`vcjax log` shows which; move or delete it, or commit to the branch, first",
            )

    def close(self) -> None:
        """Waits for the step that is being saved; raises what went wrong."""
        try:
            self.wait_until_finished()
        finally:
            self._keeper.close()
            self._handlers.close()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _get_old_steps_to_remove(self) -> list[int]:
        """What subclasses of Orbax's manager, such as T5X's, override."""
        return [step.step for step in self._retention.dropped(self._checkpoints)]
