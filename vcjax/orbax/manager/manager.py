"""`CheckpointManager`: Orbax's calls; every save is a commit."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_manager as theirs
from orbax.checkpoint import checkpoint_managers as policies

from vcjax.errors import StepExistsError, VcjaxError
from vcjax.history import checked_metadata
from vcjax.orbax.items.record import DEFAULT_ITEM, StepRecord, step_metadata
from vcjax.orbax.items.step_content import staged
from vcjax.orbax.items.stored_item import from_first
from vcjax.orbax.manager import metrics as metrics_
from vcjax.orbax.manager.keeper import StepKeeper
from vcjax.orbax.manager.open import handlers_of, open_repository
from vcjax.orbax.manager.options import CheckpointManagerOptions, added
from vcjax.orbax.manager.policies import Retention, is_pure, rate, save_policy
from vcjax.orbax.manager.shared_save import Plan, Sharing, same_step
from vcjax.orbax.manager.step import Step, checked_step
from vcjax.orbax.manager.step_reader import StepReader


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
    _save_policy: Any
    _retention: Retention
    _root_metadata: dict[str, Any] | None

    def __init__(
        self,
        directory: str | os.PathLike[str],
        checkpointers: Any = None,
        options: Any = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Sequence[str] | None = None,
        item_handlers: Any = None,
        logger: Any = None,
        handler_registry: Any = None,
    ):
        if hasattr(checkpointers, "save_interval_steps"):
            checkpointers, options = None, checkpointers
        self._options = options or CheckpointManagerOptions()
        self._logger = logger
        self._decides = False  # whether this is process 0, asked by all of them

        def prepare() -> None:
            self._handlers, self._async = handlers_of(
                checkpointers, item_names, item_handlers, handler_registry, self._options
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
        now = Step(step, datetime.now(UTC))
        return self._save_policy.should_save(now, self._checkpoints, context=context)

    def save(
        self,
        step: int,
        items: Any = None,
        save_kwargs: Mapping[str, Any] | None = None,
        metrics: Any = None,
        force: bool | None = False,
        args: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
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
            overwrite = added(self._options, "overwrite")
        if save_kwargs and metrics is None and not self._handlers.are_given:
            save_kwargs, metrics = None, save_kwargs
        asks = not (force or overwrite)
        if self._options.read_only or (asks and self._says_the_same_everywhere):
            if self._options.read_only or not self.should_save(step):
                checked_step(step)
                if not self.repo.processes.is_shared:  # else it would take a message to fail alike
                    self._check_arguments(items, args)
                return False
            asks = False

        def check() -> int:
            self._check_arguments(items, args)
            if asks:
                self.reached_preemption(checked_step(step))  # JAX wants to hear it of all
            return checked_step(step)

        plan = self._planned(check, asks, bool(overwrite), metrics)
        if plan is None:
            return False
        with Sharing(self.repo, plan.token) as sharing:
            saved = self._saved_args(items, save_kwargs or {}, args)
            single = bool(self._handlers.single)
            with staged(self._handlers, saved, single, sharing) as (tree, records):
                hidden = self._options.prevent_write_metrics
                plain, numbers = metrics_.checked(plan.step.metrics)
                record = StepRecord(
                    records,
                    single,
                    None if hidden else metrics_.nested(plain, numbers),
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
                        metrics={} if hidden else numbers,
                        rebase=False,  # a step is a whole state, and nothing is merged into it
                        from_first=from_first(records, single),
                    ),
                    plan.gone,
                    list(records) if args and added(self._options, "step_folders") else None,
                )
        self._log("save", plan.step.step, began)
        return True

    def _planned(
        self, check: Callable[[], int], asks: bool, overwrite: bool, metrics: Any
    ) -> Plan | None:
        """What is to be saved, found by process 0 for all; None if nothing is.

        Args:
            check: gives the step; called on every process, and what fails there fails on all.
            asks: whether the policy is to be asked.
        """
        keeper = self._keeper
        brought_stale = keeper.is_stale

        def find(brought: Sequence[Any]) -> dict[str, Any] | None:
            step = same_step(brought)
            if asks and not self._decided(step):
                return None
            keeper.settle()
            keeper.raise_failure(instead_of=step)
            news = keeper.take_news(any(stale for _, stale in brought))
            known = keeper.index.get(step)
            if known is not None and not overwrite:
                return {"step": step, "news": news, "exists": known.commit}
            plain, _ = metrics_.checked(metrics)
            score = rate(step, plain, self._options)  # fails before anything is committed
            made = Step(step, datetime.now(UTC), plain, score=score)
            gone = keeper.old_steps(made, self._get_old_steps_to_remove)
            return Plan(made, gone).told() | {"news": news}

        told = keeper.agree(find, lambda: [check(), brought_stale])
        if told is None:
            return None
        if "exists" in told:
            raise StepAlreadyExistsError(
                f"step {told['step']} was saved already, as commit {told['exists'][:8]}",
                hint="overwrite=True replaces it; its former state stays in `vcjax log`",
            )
        return Plan.of(told)

    def _decided(self, step: int) -> bool:
        """What `should_save` says, also that of a subclass, on process 0 alone."""
        self._decides = True
        try:
            return self.should_save(step)
        finally:
            self._decides = False

    def _check_arguments(self, items: Any, args: Any) -> None:
        if isinstance(items, ocp.args.CheckpointArgs):
            raise ValueError(f"give it by name: args=ocp.args.{type(items).__qualname__}(…)")
        if items is None and args is None:
            raise ValueError("there is nothing to save: give a tree, or `args`")
        if args is None:
            if self._handlers.single is None:
                self._handlers.single = True
            return
        if not isinstance(args, ocp.args.CheckpointArgs):
            raise ValueError(f"args is a {type(args).__qualname__}, and none of `ocp.args`")
        composite = isinstance(args, ocp.args.Composite)
        if self._handlers.single is None:
            self._handlers.single = not composite
        if composite and not len(args):
            raise ValueError("there is nothing to save: `Composite` without items")
        if composite and self._handlers.single:
            raise ValueError(
                "Cannot provide `args` of type `Composite`: this manager saves a single object"
            )
        if not composite and not self._handlers.single:
            raise ValueError("Must provide `args` of type `Composite`: this manager saves items")

    def _saved_args(self, items: Any, save_kwargs: Mapping[str, Any], args: Any) -> dict[str, Any]:
        """{item name: arguments to save by}."""
        if args is not None:
            return {DEFAULT_ITEM: args} if self._handlers.single else dict(args.items())
        if self._handlers.single:
            items, save_kwargs = {DEFAULT_ITEM: items}, {DEFAULT_ITEM: save_kwargs}
        return {
            name: self._handlers.arguments(name, item, save_kwargs.get(name) or {}, save=True)
            for name, item in items.items()
        }

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
        found = self._require(step)
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
