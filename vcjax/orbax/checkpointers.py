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
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, TypeVar

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_args
from orbax.checkpoint import checkpointers as theirs

from vcjax.history import Commit
from vcjax.orbax.checkpointer_paths import AnyPath, is_orbax, locate_saved, repository_for
from vcjax.orbax.items.handler_files import Positional
from vcjax.orbax.items.handlers import ItemHandlers, decoded
from vcjax.orbax.items.record import DEFAULT_ITEM, StepRecord, step_metadata
from vcjax.orbax.items.step_content import described, restored, staged
from vcjax.orbax.items.stored_item import from_first, stored_items
from vcjax.orbax.manager.options import is_local, process_timeout
from vcjax.orbax.manager.shared_save import Sharing
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
        options: Orbax's further options. `multiprocessing_options` and the time-out of
            `async_options` mean what they mean for a manager; the others, about files, are
            accepted and have no meaning here.

    In a program of several processes they make the same calls together, as with Orbax.
    """

    def __init__(self, handler: Any, *_: Any, **options: Any):
        self._handler = handler
        self._local = is_local(options.get("multiprocessing_options"))
        self._timeout_s = process_timeout(SimpleNamespace(**{"async_options": None} | options))
        self._timeout_s = min(self._timeout_s, options.get("timeout_secs") or self._timeout_s)
        self._single = not isinstance(handler, ocp.CompositeCheckpointHandler)
        if self._single:
            self._handlers = ItemHandlers(handlers=handler)
        else:
            registry = handler._handler_registry
            self._handlers = ItemHandlers(registry=registry, single=False)

    @property
    def handler(self) -> Any:
        """The handler that was given."""
        return self._handler

    def save(
        self,
        directory: AnyPath,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        **kwargs: Any,
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
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        force: bool,
        custom_metadata: dict[str, Any] | None,
        background: bool,
    ) -> tuple[Repository, Commit | Future[Commit]]:
        def prepare() -> tuple[dict[str, Any], dict[str, Any]]:
            given = self._arguments(args, kwargs, save=True)
            items = {DEFAULT_ITEM: given} if self._single else dict(given.items())
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

        def find(_: Any) -> dict[str, str]:
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

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any], save: bool) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, ocp.args.CheckpointArgs):
                return value
        if not checkpoint_args.has_registered_args(self._handler):
            return Positional(args, kwargs)
        cls = checkpoint_args.get_registered_args_cls(self._handler)[not save]
        return cls(*args, **kwargs)

    def restore(self, directory: AnyPath, *args: Any, **kwargs: Any) -> Any:
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

    def metadata(self, directory: AnyPath) -> Any:
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
            found.item_handlers = found.item_handlers.get(name)
            if place.item is not None and isinstance(found.item_metadata, ocp.args.Composite):
                found.item_metadata = found.item_metadata[place.item]
        return found

    def close(self) -> None:
        """Closes the handler."""
        self._handlers.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer` whose `save` returns when the arrays may be donated and written to."""

    _pending: tuple[Repository, Future[Commit], int] | None = None

    def save(
        self,
        directory: AnyPath,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `Checkpointer.save`, in the background, after the save before it."""
        self.wait_until_finished()
        repo, made = self._commit(directory, args, kwargs, force, custom_metadata, True)
        assert isinstance(made, Future)
        self._pending = repo, made, threading.get_ident()

    def restore(self, directory: AnyPath, *args: Any, **kwargs: Any) -> Any:
        """As `Checkpointer.restore`, after what is being saved."""
        self.wait_until_finished()
        return super().restore(directory, *args, **kwargs)

    def metadata(self, directory: AnyPath) -> Any:
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
        state: Any = None,
        *args: Any,
        save_args: Any = None,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves a PyTree; `save_args` may cast its leaves. Otherwise as `Checkpointer.save`."""
        given = kwargs.pop("args", None)
        if given is None:
            given = ocp.args.StandardSave(state, save_args)
        super().save(directory, args=given, force=force, custom_metadata=custom_metadata)

    def restore(
        self, directory: AnyPath, target: Any = None, *args: Any, strict: bool = True, **kwargs: Any
    ) -> Any:
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

    def __init__(self, *_: Any, **options: Any):
        super().__init__(ocp.PyTreeCheckpointHandler(), **options)
