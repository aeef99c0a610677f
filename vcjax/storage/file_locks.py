"""Locks of files in a folder, by the operating system's `flock` and `lockf`.

What compare-and-set in a folder rests on. Python has both in `fcntl`, which Windows
lacks: it is imported when a lock is asked for, so that history in memory and in
buckets works there too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from vcjax.errors import StorageError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is made if need be; others wait for it.

    Raises:
        StorageError: this system has no such locks.
    """
    fcntl = _fcntl(path.parent)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def empty_unlocked(path: Path) -> None:
    """Empties a file, if it exists and no process holds its lock.

    Raises:
        StorageError: this system has no such locks.
    """
    fcntl = _fcntl(path.parent)
    with (
        suppress(FileNotFoundError, PermissionError, BlockingIOError),
        path.open("r+b") as file,
    ):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # not renamed meanwhile
            os.ftruncate(file.fileno(), 0)


def require_locks(folder: Path) -> None:
    """Refuses a folder that cannot be written safely, before anything is written to it.

    Raises:
        StorageError: this system has no locks of files.
    """
    _fcntl(folder)


def _fcntl(folder: Path) -> ModuleType:
    try:
        import fcntl
    except ImportError as error:
        raise StorageError(
            f"cannot write to {str(folder)!r}: this system has no fcntl.flock, "
            "on which compare-and-set in a folder relies",
            hint="keep the repository in a bucket (s3://, gs://) or in memory://; "
            "on Windows, run vcjax in WSL",
        ) from error
    return fcntl
