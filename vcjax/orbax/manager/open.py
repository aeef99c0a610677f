"""What the arguments of a manager's constructor mean."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.handlers import CheckpointHandlerRegistry

from vcjax.errors import RepositoryExistsError, RepositoryNotFoundError
from vcjax.objects.layout import GRACE_SECONDS, OBJECT_FOLDERS
from vcjax.orbax.items.handlers import ItemHandlers
from vcjax.orbax.items.shared_save import clean_folders
from vcjax.orbax.manager.options import added, is_local, process_timeout
from vcjax.processes.conversation import agree
from vcjax.processes.group import several
from vcjax.repo import Repository
from vcjax.repo.settings import Settings, enclosing, locate
from vcjax.storage import Store


def open_repository(
    directory: str | os.PathLike[str],
    options: ocp.CheckpointManagerOptions,
    prepare: Callable[[], None],
) -> Repository:
    """The repository of a manager; made where there is none, as far as the options allow.

    A read-only manager may come before there is one, as one that evaluates what another
    program is about to train.

    Of several processes, process 0 makes it, and the others open it then. With `create`
    off a folder that exists is taken into use all the same, as by Orbax: it is the folder
    that is not to be made.

    Args:
        prepare: called first on every process; if it fails on one, all fail.

    Raises:
        RepositoryNotFoundError: there is none, and none is to be made.
        RepositoryExistsError: there is one above, such as the folder of a step has.
    """
    local = is_local(options.multiprocessing_options)
    timeout_s = process_timeout(added(options, "process_timeout_s"), options.async_options)

    def make() -> Repository:
        repo = _opened_or_made(directory, options)
        if options.cleanup_tmp_directories:
            repo.gc()
            clean_folders(repo, GRACE_SECONDS)
        return repo

    url = locate(directory).url
    if local or not several(url):
        prepare()
        repo = make()
    else:
        agree(url, timeout_s, lambda _: make().url, prepare)
        repo = _opened(directory, options)
    repo.processes.local, repo.processes.timeout = local, timeout_s
    return repo


def _opened_or_made(
    directory: str | os.PathLike[str], options: ocp.CheckpointManagerOptions
) -> Repository:
    folder = locate(directory).location.folder
    there = folder is not None and folder.is_dir()
    try:
        return _opened(directory, options)
    except RepositoryNotFoundError:
        if not (options.create or there):
            raise
    _refuse_to_nest(locate(directory))
    if folder is not None and there:
        _warn_of_orbax(folder)
    return Repository.init(directory, exist_ok=True, local=True)


def _opened(directory: str | os.PathLike[str], options: ocp.CheckpointManagerOptions) -> Repository:
    try:
        return Repository.open(directory, local=True)
    except RepositoryNotFoundError:
        if not options.read_only:
            raise
    store = locate(directory)
    _refuse_to_nest(store)
    if store.location.folder is not None and store.location.folder.is_dir():
        _warn_of_orbax(store.location.folder)
    logging.warning("there is no repository in %s yet; reload() looks again", store.url)
    return Repository(store, Settings(), local=True)


def _refuse_to_nest(store: Store) -> None:
    """A run that is opened by the folder of one of its steps would begin at its first step.

    Runs in other folders of a run are allowed, as by Orbax.
    """
    outer = enclosing(store)
    if outer is None:
        return
    name = Path(store.url).relative_to(outer).parts[0]
    if not (name[-1].isdecimal() or name in OBJECT_FOLDERS):
        logging.warning("%s lies within the repository in %s, and is another", store.url, outer)
        return
    raise RepositoryExistsError(
        f"{store.url} lies within the repository in {outer}",
        hint=f"give {str(outer)!r}; or, for a run of its own in there, first "
        f"`vcjax init {shlex.quote(store.url)}`",
    )


def _warn_of_orbax(folder: Path) -> None:
    """A run that goes on in a folder of Orbax's would begin at its first step."""
    steps = [entry.name for entry in folder.iterdir() if (entry / "_CHECKPOINT_METADATA").exists()]
    if steps:
        logging.warning(
            "%s holds %d steps that Orbax saved, which are not seen here: "
            "`vcjax import orbax %s` makes commits of them",
            folder,
            len(steps),
            folder,
        )


class HandlerOwner(Protocol):
    """A checkpointer, of Orbax or of ours: all that is taken from it is its handler."""

    @property
    def handler(self) -> ocp.CheckpointHandler:
        """What it saves and restores by."""
        ...


Checkpointers = HandlerOwner | Mapping[str, HandlerOwner]
Handlers = ocp.CheckpointHandler | Mapping[str, ocp.CheckpointHandler]
"""Of a single object, or by item name."""


def handlers_of(
    checkpointers: Checkpointers | None,
    item_names: Sequence[str] | None,
    item_handlers: Handlers | None,
    registry: CheckpointHandlerRegistry | None,
    options: ocp.CheckpointManagerOptions,
) -> tuple[ItemHandlers, bool]:
    """(the handlers, whether to save in the background).

    Raises:
        ValueError: arguments that exclude each other.
    """
    given = {
        "checkpointers": checkpointers,
        "item_names": item_names,
        "item_handlers": item_handlers,
        "handler_registry": registry,
    }
    together = {frozenset(("item_names", "item_handlers"))}
    names = [name for name, value in given.items() if value is not None]
    single = item_handlers is not None and not isinstance(item_handlers, Mapping)
    if len(names) > 1 and (frozenset(names) not in together or (single and item_names)):
        raise ValueError(f"{' and '.join(names)} are mutually exclusive")
    in_background = options.enable_async_checkpointing
    if checkpointers is None:
        return ItemHandlers(item_names, item_handlers, registry), in_background
    several = isinstance(checkpointers, Mapping)
    members = list(checkpointers.values()) if several else [checkpointers]
    wrong = [member for member in members if not hasattr(member, "handler")]
    if wrong:
        raise ValueError(f"checkpointers holds a {type(wrong[0]).__qualname__}, no checkpointer")
    if several:
        handlers = {name: member.handler for name, member in checkpointers.items()}
    else:
        handlers = checkpointers.handler
    in_background = any(hasattr(member, "wait_until_finished") for member in members)
    return ItemHandlers(None, handlers), in_background
