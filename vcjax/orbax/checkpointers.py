"""Orbax's checkpointers: one object at a path, which is a repository of its own.

`save(path, state)` commits to the repository at the path; with `force=True` to one that is
there already, whose history goes on. `restore(path)` also takes the path of a step, or of
an item of it, as Orbax's manager would have laid it out: `RUN/100`, `RUN/100/params`.
What Orbax itself saved at a path is restored by Orbax.

Stands for `orbax.checkpoint.checkpointers`, with ours in the place of its classes.
"""

import os
import re
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_args
from orbax.checkpoint import checkpointers as theirs

from vcjax.errors import RepositoryExistsError, RepositoryNotFoundError, RevisionError
from vcjax.history import Commit, checked_metadata
from vcjax.orbax.contents import described, restored, staged
from vcjax.orbax.foreign import Positional
from vcjax.orbax.item_handlers import ItemHandlers, decoded
from vcjax.orbax.items import DEFAULT_ITEM, StepRecord, stored_items
from vcjax.repo import Repository

AbstractCheckpointer = theirs.AbstractCheckpointer

_Path = str | os.PathLike[str]
_ORBAX_FILES = ("_CHECKPOINT_METADATA", "_METADATA")


def __getattr__(name: str) -> Any:
    return getattr(theirs, name)


class Place(NamedTuple):
    """What a path stands for: a commit, or one item of it."""

    repo: Repository
    commit: Commit
    item: str | None = None


class Checkpointer(ocp.AbstractCheckpointer):
    """Saves objects to paths, by a handler.

    Args:
        handler: one of Orbax's, or anybody's.
        options: Orbax's further options, about files and processes; accepted, and without
            meaning here.
    """

    def __init__(self, handler: Any, *_: Any, **options: Any):
        self._handler = handler
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
        directory: _Path,
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
        directory: _Path,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        force: bool,
        custom_metadata: dict[str, Any] | None,
        background: bool,
    ) -> tuple[Repository, Commit | Future[Commit]]:
        given = self._arguments(args, kwargs, save=True)
        repo = _repository_for(directory, force)
        items = {DEFAULT_ITEM: given} if self._single else dict(given.items())
        custom = checked_metadata(dict(custom_metadata or {}), "custom_metadata")
        with staged(self._handlers, items, self._single) as (tree, records):
            metadata = StepRecord(records, self._single, custom_metadata=custom).encode(None)
            commit = repo.commit_async if background else repo.commit
            message = f"save {os.fspath(directory)}"
            return repo, commit(tree, message, metadata=metadata, rebase=False)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any], save: bool) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, ocp.args.CheckpointArgs):
                return value
        if not checkpoint_args.has_registered_args(self._handler):
            return Positional(args, kwargs)
        cls = checkpoint_args.get_registered_args_cls(self._handler)[not save]
        return cls(*args, **kwargs)

    def restore(self, directory: _Path, *args: Any, **kwargs: Any) -> Any:
        """The object at a path.

        Args:
            directory: the path.
            args: a target, or one of `ocp.args`; further arguments of the handler.

        Raises:
            FileNotFoundError: there is nothing.
            StructureError: it does not fit; names every path, with both shapes.
        """
        if _is_orbax(directory):
            return theirs.Checkpointer(self._handler).restore(directory, *args, **kwargs)
        place = _locate(directory)
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

    def metadata(self, directory: _Path) -> Any:
        """Orbax's `StepMetadata` of what is at a path; no leaf is read.

        Raises:
            FileNotFoundError: there is nothing.
        """
        if _is_orbax(directory):
            return theirs.Checkpointer(self._handler).metadata(directory)
        place = _locate(directory)
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

    _pending: tuple[Repository, Future[Commit]] | None = None

    def save(
        self,
        directory: _Path,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `Checkpointer.save`, in the background, after the save before it."""
        self.wait_until_finished()
        repo, made = self._commit(directory, args, kwargs, force, custom_metadata, True)
        assert isinstance(made, Future)
        self._pending = repo, made

    def restore(self, directory: _Path, *args: Any, **kwargs: Any) -> Any:
        """As `Checkpointer.restore`, after what is being saved."""
        self.wait_until_finished()
        return super().restore(directory, *args, **kwargs)

    def metadata(self, directory: _Path) -> Any:
        """As `Checkpointer.metadata`, after what is being saved."""
        self.wait_until_finished()
        return super().metadata(directory)

    def wait_until_finished(self) -> None:
        """Waits for what is being saved.

        Raises:
            Exception: what went wrong with it, once.
        """
        if self._pending is not None:
            (repo, _), self._pending = self._pending, None
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
        options: Orbax's; accepted, and without meaning here.

    Example:
        >>> import tempfile, numpy as np
        >>> with StandardCheckpointer() as checkpointer:
        ...     path = tempfile.mkdtemp() + "/state"
        ...     checkpointer.save(path, {"w": np.arange(3)})
        ...     checkpointer.restore(path)
        {'w': array([0, 1, 2])}
    """

    def __init__(self, **options: Any):
        super().__init__(ocp.StandardCheckpointHandler())

    def save(
        self,
        directory: _Path,
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
        self, directory: _Path, target: Any = None, *args: Any, strict: bool = True, **kwargs: Any
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
        options: Orbax's, about its files; accepted, and without meaning here.
    """

    def __init__(self, *_: Any, **options: Any):
        super().__init__(ocp.PyTreeCheckpointHandler())


def _repository_for(directory: _Path, force: bool) -> Repository:
    try:
        repo = Repository.open(directory)
    except RepositoryNotFoundError:
        path = Path(os.fspath(directory))
        if "://" not in os.fspath(directory) and path.exists():
            if not force:
                raise ValueError(f"Destination {directory} already exists.") from None
            if not path.is_dir() or any(path.iterdir()):
                raise RepositoryExistsError(
                    f"{directory} holds something that is no repository, which is not deleted",
                    hint="delete it yourself, or save to another path",
                ) from None
        return Repository.init(directory)
    if not force and repo.branches:
        raise ValueError(f"Destination {directory} already exists.")
    return repo


def _is_orbax(directory: _Path) -> bool:
    """Whether Orbax itself saved something at a path."""
    path = Path(os.fspath(directory))
    return any((path / name).exists() for name in _ORBAX_FILES)


def _locate(directory: _Path) -> Place:
    """The commit, or the item of one, that a path stands for.

    Raises:
        FileNotFoundError: there is nothing.
    """
    path = Path(os.fspath(directory))
    candidates: list[tuple[_Path, str, str | None]] = [
        (directory, "HEAD", None),
        (path.parent, _step_of(path.name), None),
        (path.parent.parent, _step_of(path.parent.name), path.name),
    ]
    for folder, revision, item in candidates:
        if revision:
            with suppress(RepositoryNotFoundError, RevisionError):
                repo = Repository.open(folder)
                return Place(repo, repo.resolve(revision), item)
    raise FileNotFoundError(f"Checkpoint at {directory} not found.")


def _step_of(name: str) -> str:
    """The revision that a folder with Orbax's name for a step stands for; "" if it is none."""
    number = re.search(r"\d+$", name)
    return "" if number is None else f"step:{int(number[0])}"
