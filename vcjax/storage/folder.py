"""What a store in a folder asks of the file system: its files, its links, its clock."""

import os
import stat
from collections.abc import Container
from pathlib import Path

from vcjax.errors import StorageError

MAX_LEVELS = 64
"""How deep folders are listed; a repository is 12 deep, a link to a folder above it endless."""


def files(
    root: str, folder: str, beginning: str, without: Container[str] = (), follow: bool = True
) -> list[str]:
    """Keys of the files below a folder whose names begin in a certain way.

    Of 10,000 files in one folder: 18 ms of CPU, 8 if all are in `without`, and 30
    through TensorStore.

    Args:
        root: of the store.
        folder: key of the folder, with a `/` at its end; "" is the root.
        beginning: of the names in it.
        without: keys that are of no interest.
        follow: whether links count as what they lead to; otherwise they are passed over.

    Raises:
        StorageError: folders are nested without end, by a link that leads up again.
    """
    if folder.count("/") > MAX_LEVELS:
        raise StorageError(
            f"{root}/{folder} is {MAX_LEVELS} folders deep",
            hint="look for a symbolic link there that leads to a folder above it, and remove it",
        )
    path = f"{root}/{folder}"
    try:
        if without and follow:
            names = [name for name in os.listdir(path) if folder + name not in without]
            pairs = [(name, os.path.isdir(path + name)) for name in names]
        else:
            with os.scandir(path) as entries:
                pairs = [
                    (entry.name, entry.is_dir())
                    for entry in entries
                    if (follow or not entry.is_symlink()) and folder + entry.name not in without
                ]
    except (FileNotFoundError, NotADirectoryError):  # maybe somebody has just removed it
        return []
    found = []
    for name, is_folder in pairs:
        if not name.startswith(beginning):
            continue
        if is_folder:
            found += files(root, f"{folder}{name}/", "", without, follow)
        else:
            found.append(folder + name)
    return found


def leads_out(root: Path, key: str) -> bool:
    """Whether a key is, or lies behind, a symbolic link below the root of a store."""
    path = root
    for part in filter(None, key.split("/")):
        path /= part
        if path.is_symlink():
            return True
    return False


def now(root: Path, probe: str) -> float:
    """What the file system's own clock says, seconds since 1970 UTC.

    On a network file system that is the server's, by which it tells when files were
    written. It is asked by touching a file, which takes no space.

    Args:
        root: of the store.
        probe: name of the file, which is made if it is not there.
    """
    path = root / probe
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def modified(root: Path, key: str) -> float | None:
    """When the file of a key was last written, seconds since 1970 UTC; None if there is none."""
    try:
        status = (root / key).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime if stat.S_ISREG(status.st_mode) else None
