"""Handlers that write files: anybody's `CheckpointHandler`, such as Grain's iterator.

A handler is given an empty temporary folder and does there what it does in Orbax. The
files become leaves: arrays of bytes, in dicts that are the folders. To restore, they are
written to a temporary folder again for the handler to read.
"""

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.future import Future

from vcjax.errors import VcjaxError
from vcjax.formats.files import name_problem
from vcjax.history import LeafEntry
from vcjax.orbax.items.file_tree import file_problems
from vcjax.orbax.items.handlers import Arguments, Positional
from vcjax.orbax.items.shared_save import Sharing
from vcjax.orbax.items.stored_item import StoredItem
from vcjax.repo.restore import read_leaves
from vcjax.tree import Node, unescape

_T = TypeVar("_T")

Files = dict[str, "np.ndarray | Files"]
"""Files as arrays of bytes, in dicts that are the folders."""


def _call(args: Arguments) -> Positional:
    return args if isinstance(args, Positional) else Positional(kwargs={"args": args})


@contextmanager
def written(
    handler: ocp.CheckpointHandler, args: Arguments, sharing: Sharing | None = None
) -> Iterator[Files]:
    """What a handler saves, as a tree of its files; they exist until the context is left.

    An asynchronous handler is waited for: what it writes is needed to make the commit.
    Several processes write to one folder, as in Orbax, and process 0 has the tree.
    """
    sharing = sharing or Sharing.alone()
    with sharing.folder() as parent:
        folder = epath.Path(parent) / "item"
        folder.mkdir(parents=True, exist_ok=True)

        def save() -> None:
            call = _call(args)
            if isinstance(handler, ocp.AsyncCheckpointHandler):
                for future in _started(handler, folder, call):
                    future.result()
            else:
                handler.save(folder, *call.args, **call.kwargs)

        sharing.agree(lambda: handler.finalize(folder), save)
        yield files_of(parent / "item") if sharing.leads else {}


def _started(
    handler: ocp.AsyncCheckpointHandler, folder: epath.Path, call: Positional
) -> list[Future]:
    async def start() -> list[Future] | None:
        return await handler.async_save(folder, *call.args, **call.kwargs)

    return list(_run(start()) or ())


def _run(coroutine: Coroutine[object, object, _T]) -> _T:
    """The result of a coroutine, also where an event loop runs already, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


def files_of(folder: Path) -> Files:
    """A folder as a tree: files as arrays of bytes, mapped and not read yet; folders as dicts.

    Raises:
        VcjaxError: it holds something that is neither.
    """
    found: Files = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            found[entry.name] = files_of(entry)
        elif not entry.is_file():
            raise VcjaxError(
                f"a handler made {entry.name!r}, which is neither a file nor a folder",
                hint="write files, or save the object by ocp.args.PyTreeSave",
            )
        elif entry.stat().st_size:
            found[entry.name] = np.memmap(entry, np.uint8, "r")
        else:
            found[entry.name] = np.zeros(0, np.uint8)
    return found


def restore(handler: ocp.CheckpointHandler, item: StoredItem, args: Arguments) -> object:
    """What a handler makes of the files of an item."""
    call = _call(args)
    with folder_of(item) as folder:
        return handler.restore(folder, *call.args, **call.kwargs)


def metadata(handler: ocp.CheckpointHandler, item: StoredItem) -> object:
    """What a handler says of the files of an item; None if it cannot tell."""
    with folder_of(item) as folder:
        try:
            return handler.metadata(folder)
        except (FileNotFoundError, NotImplementedError):
            return None


@contextmanager
def folder_of(item: StoredItem) -> Iterator[epath.Path]:
    """A temporary folder with the files of an item."""
    with tempfile.TemporaryDirectory(prefix="vcjax-item-") as name:
        if problem := next(file_problems(item.root), None):
            raise VcjaxError(
                f"item {item.name!r} cannot be written as files: {problem}",
                hint="`repo.restore` gives their contents as arrays of bytes",
            )
        folder = Path(name) / ("item" if name_problem(item.name) else item.name)
        _make_folders(folder, item.root)
        for path, leaf in read_leaves(item.repo.objects, item.leaves):
            place = _inside(folder, path)
            place.write_bytes(np.asarray(leaf.data).tobytes())
        yield epath.Path(folder)


def _make_folders(folder: Path, root: Node | LeafEntry) -> None:
    assert isinstance(root, Node)  # else `file_problems` named it
    folder.mkdir()
    for key, child in zip(root.keys, root.children, strict=True):
        if isinstance(child, Node):
            _make_folders(folder / str(key), child)


def _inside(folder: Path, path: str) -> Path:
    """The file of a leaf path. A segment is the escaped name; names have no "/"."""
    return folder.joinpath(*map(unescape, path.split("/")))
