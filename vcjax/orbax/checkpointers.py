"""Orbax's checkpointers: one object at a path, which is a repository of its own.

`save(path, state)` commits to the repository at the path; with `force=True` to one that is
there already, whose history goes on. `restore(path)` also takes the path of a step, or of
an item of it, as Orbax's manager would have laid it out: `RUN/100`, `RUN/100/params`.
What Orbax itself saved at a path is restored by Orbax.

Stands for `orbax.checkpoint.checkpointers`, with ours in the place of its classes.
"""

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar, cast

import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_args
from orbax.checkpoint import checkpointers as theirs

from vcjax.history import Commit
from vcjax.orbax.checkpointer_paths import AnyPath, is_orbax, locate_saved, repository_for
from vcjax.orbax.items.handlers import Arguments, ItemHandlers, Positional
from vcjax.orbax.items.item_metadata import described
from vcjax.orbax.items.record import DEFAULT_ITEM, StepRecord, step_metadata
from vcjax.orbax.items.restore import decoded, restored
from vcjax.orbax.items.save import from_first, staged
from vcjax.orbax.items.shared_save import Sharing
from vcjax.orbax.items.stored_item import stored_items
from vcjax.orbax.manager.options import CheckpointManagerOptions, is_local, process_timeout
from vcjax.orbax.orbax_internals import registry_of
from vcjax.processes.conversation import agree
from vcjax.processes.group import several
from vcjax.repo import Repository
from vcjax.repo.settings import locate

AbstractCheckpointer = theirs.AbstractCheckpointer

_T = TypeVar("_T")


def __getattr__(name: str) -> Any:
    return getattr(theirs, name)


class Checkpointer(ocp.AbstractCheckpointer):
    """Saves objects to paths, by a handler.

    Args:
        handler: one of Orbax's, or anybody's.
        multiprocessing_options: as for a manager.
        async_options: their time-out is as for a manager.
        timeout_secs: another time-out; the smallest counts.
        process_timeout_s: as for a manager.
        others: Orbax's further options, about files: accepted, and without meaning here.

    In a program of several processes they make the same calls together, as with Orbax.
    """

    def __init__(
        self,
        handler: ocp.CheckpointHandler,
        *_: object,
        multiprocessing_options: ocp.options.MultiprocessingOptions | None = None,
        async_options: ocp.AsyncOptions | None = None,
        timeout_secs: float | None = None,
        process_timeout_s: float = CheckpointManagerOptions.process_timeout_s,
        **others: object,
    ):
        self._handler = handler
        self._local = is_local(multiprocessing_options)
        seconds = process_timeout(process_timeout_s, async_options)
        self._timeout_s = min(seconds, timeout_secs or seconds)
        if isinstance(handler, ocp.CompositeCheckpointHandler):
            self._handlers = ItemHandlers(registry=registry_of(handler), single=False)
        else:
            self._handlers = ItemHandlers(handlers=handler)
        self._single = bool(self._handlers.single)

    @property
    def handler(self) -> ocp.CheckpointHandler:
        """The handler that was given."""
        return self._handler

    def save(
        self,
        directory: AnyPath,
        *args: object,
        force: bool = False,
        custom_metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Saves an object as a commit of the repository at a path.

        Args:
            directory: the path; made by this.
            args: the object, or one of `ocp.args`; further arguments of the handler.
            force: commit to the repository that is at the path already.
            custom_metadata: JSON types.

        Raises:
            ValueError: something is at the path, and not `force`.
            RepositoryExistsError: something other than a repository is.
        """
        self._commit(directory, args, kwargs, force, custom_metadata, False)

    def _commit(
        self,
        directory: AnyPath,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        force: bool,
        custom_metadata: Mapping[str, object] | None,
        background: bool,
    ) -> tuple[Repository, Commit | Future[Commit]]:
        def prepare() -> tuple[dict[str, Arguments], dict[str, object]]:
            given = self._arguments(args, kwargs, save=True)
            named = {DEFAULT_ITEM: given} if self._single else cast(ocp.args.Composite, given)
            items = dict(named.items())
            return items, step_metadata(custom_metadata)

        repo, token, (items, custom) = self._opened(directory, force, prepare)
        with (
            Sharing(repo, token) as sharing,
            staged(self._handlers, items, self._single, sharing) as (tree, records),
        ):
            metadata = StepRecord(records, self._single, custom_metadata=custom).encode(None)
            commit = repo.commit_async if background else repo.commit
            sharing.is_over = True  # what fails from here on, the commit tells
            return repo, commit(
                tree,
                f"save {os.fspath(directory)}",
                metadata=metadata,
                rebase=False,
                from_first=from_first(records, self._single),
            )

    def _opened(
        self, directory: AnyPath, force: bool, prepare: Callable[[], _T]
    ) -> tuple[Repository, str, _T]:
        """The repository to save to, a name for the save, and what `prepare` gives here.

        Of several processes process 0 makes it, unless `prepare` fails on one of them.
        """
        url = locate(directory).url
        if self._local or not several(url):
            prepared = prepare()
            return repository_for(directory, force), "", prepared
        here: list[_T] = []

        def find(_: object) -> dict[str, str]:
            try:
                repository_for(directory, force)
            except ValueError as error:
                return {"exists": str(error)}
            return {"token": secrets.token_hex(8)}

        told = agree(url, self._timeout_s, find, lambda: here.append(prepare()))
        if "exists" in told:
            raise ValueError(told["exists"])
        return self._at(directory), told["token"], here[0]

    def _at(self, directory: AnyPath) -> Repository:
        repo = Repository.open(directory, local=self._local)
        repo.processes.timeout = self._timeout_s
        return repo

    def _arguments(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], save: bool
    ) -> Arguments:
        for value in (*args, *kwargs.values()):
            if isinstance(value, ocp.args.CheckpointArgs):
                return value
        if not checkpoint_args.has_registered_args(self._handler):
            return Positional(args, kwargs)
        cls = checkpoint_args.get_registered_args_cls(self._handler)[not save]
        return cls(*args, **kwargs)

    def restore(self, directory: AnyPath, *args: object, **kwargs: Any) -> PyTree:
        """The object at a path.

        Args:
            directory: the path.
            args: a target, or one of `ocp.args`; further arguments of the handler.

        Raises:
            FileNotFoundError: there is nothing.
            StructureError: it does not fit; names every path, with both shapes.
        """
        if is_orbax(directory):
            return theirs.Checkpointer(self._handler).restore(directory, *args, **kwargs)
        place = locate_saved(directory, self._at)
        given = None
        if args or kwargs or self._single:
            given = self._arguments(args, kwargs, save=False)
        if place.item is None:
            return restored(place.repo, place.commit, self._handlers, given)
        place.repo.require_data(place.commit)
        item = stored_items(place.repo, place.commit)[1].get(place.item)
        if item is None:
            raise FileNotFoundError(f"there is no item {place.item!r} in {place.commit}")
        return decoded(self._handlers, item, given)

    def metadata(self, directory: AnyPath) -> ocp.metadata.StepMetadata:
        """Orbax's `StepMetadata` of what is at a path; no leaf is read.

        Raises:
            FileNotFoundError: there is nothing.
        """
        if is_orbax(directory):
            return theirs.Checkpointer(self._handler).metadata(directory)
        place = locate_saved(directory, self._at)
        found = described(place.repo, place.commit, self._handlers)
        if self._single:
            name = place.item or DEFAULT_ITEM
            found.item_handlers = cast("dict[str, str]", found.item_handlers).get(name)
            if place.item is not None and isinstance(found.item_metadata, ocp.args.Composite):
                found.item_metadata = found.item_metadata[place.item]
        return found

    def close(self) -> None:
        """Closes the handler."""
        self._handlers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer` whose `save` returns when the arrays may be donated and written to."""

    _pending: tuple[Repository, Future[Commit], int] | None = None

    def save(
        self,
        directory: AnyPath,
        *args: object,
        force: bool = False,
        custom_metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """As `Checkpointer.save`, in the background, after the save before it."""
        self.wait_until_finished()
        repo, made = self._commit(directory, args, kwargs, force, custom_metadata, True)
        assert isinstance(made, Future)
        self._pending = repo, made, threading.get_ident()

    def restore(self, directory: AnyPath, *args: object, **kwargs: Any) -> PyTree:
        """As `Checkpointer.restore`, after what is being saved."""
        self.wait_until_finished()
        return super().restore(directory, *args, **kwargs)

    def metadata(self, directory: AnyPath) -> ocp.metadata.StepMetadata:
        """As `Checkpointer.metadata`, after what is being saved."""
        self.wait_until_finished()
        return super().metadata(directory)

    def wait_until_finished(self) -> None:
        """Waits for what is being saved.

        Raises:
            Exception: what went wrong with it, once; in threads that merely wait, every time.
        """
        pending = self._pending
        if pending is None:
            return
        repo, made, saver = pending
        error = made.exception()
        if error is not None and threading.get_ident() not in (
            saver,
            threading.main_thread().ident,
        ):
            raise error
        if self._pending is pending:
            self._pending = None
        repo.wait_until_finished()

    def check_for_errors(self) -> None:
        """Raises what went wrong with a save that is over, once; waits for nothing."""
        if self._pending is not None and self._pending[1].done():
            self.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved, and closes the handler."""
        try:
            self.wait_until_finished()
        finally:
            super().close()


class StandardCheckpointer(AsyncCheckpointer):
    """Saves PyTrees of arrays in the background; no `ocp.args` are needed.

    Args:
        options: as for `Checkpointer`.

    Example:
        >>> import tempfile, numpy as np
        >>> with StandardCheckpointer() as checkpointer:
        ...     path = tempfile.mkdtemp() + "/state"
        ...     checkpointer.save(path, {"w": np.arange(3)})
        ...     checkpointer.restore(path)
        {'w': array([0, 1, 2])}
    """

    def __init__(self, **options: Any):
        super().__init__(ocp.StandardCheckpointHandler(), **options)

    def save(
        self,
        directory: AnyPath,
        state: PyTree = None,
        *args: object,
        save_args: PyTree[ocp.SaveArgs] = None,
        force: bool = False,
        custom_metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Saves a PyTree; `save_args` may cast its leaves. Otherwise as `Checkpointer.save`."""
        given = kwargs.pop("args", None)
        if given is None:
            given = ocp.args.StandardSave(state, save_args)
        super().save(directory, args=given, force=force, custom_metadata=custom_metadata)

    def restore(
        self,
        directory: AnyPath,
        target: PyTree = None,
        *args: object,
        strict: bool = True,
        **kwargs: object,
    ) -> PyTree:
        """The PyTree at a path, in the structure, dtypes and shardings of a target.

        Args:
            directory: the path.
            target: concrete or abstract tree; without one, the tree as it was saved.
            strict: whether another shape is an error; if not, arrays are cut and padded.

        Raises:
            FileNotFoundError: there is nothing.
            StructureError: it does not fit; names every path, with both shapes.
        """
        given = kwargs.pop("args", None)
        if given is None:
            given = ocp.args.StandardRestore(target, strict=strict)
        return super().restore(directory, args=given)


class PyTreeCheckpointer(Checkpointer):
    """Saves PyTrees; `restore` takes `restore_args`, `transforms` and so on.

    Args:
        options: as for `Checkpointer`.
    """

    def __init__(self, *_: object, **options: Any):
        super().__init__(ocp.PyTreeCheckpointHandler(), **options)
