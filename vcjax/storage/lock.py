"""The lock of a folder, which serialises `compare_and_set`; also where there is no `flock`.

Lustre mounted without `-o flock` and NFS without its lock daemon refuse it. A file that
only one can make is the lock there. Whoever is killed leaves it behind: another process
of the same machine takes it away, and others say whose it is. All machines that write to
a folder must mount it alike, or they would hold different locks.
"""

import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from vcjax.errors import StorageError

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None

LOCK_NAME = ".lock"
"""What `flock` is asked of."""

HELD_NAME, BREAK_NAME = ".held.lock", ".break.lock"
"""The files that are locks themselves: of the folder, and of taking that one away."""

PATIENCE_S = 60.0
"""How long one process may hold the lock; a `compare_and_set` takes milliseconds."""

Kind = Literal["flock", "file"]

_NOT_THERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class FolderLock:
    """The lock of a folder that exists.

    Args:
        folder: which.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    @property
    def kind(self) -> Kind:
        """Which lock works here."""
        with (self._folder / LOCK_NAME).open("ab") as file:
            return "flock" if _locks(file.fileno(), shared=True) else "file"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock.

        Raises:
            StorageError: somebody else does not let it go.
        """
        locks_of(self._folder)
        with (self._folder / LOCK_NAME).open("ab") as file:
            if _locks(file.fileno()):
                yield
                return
        path, token = self._folder / HELD_NAME, _token()
        self._acquire(path, token)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def _acquire(self, path: Path, token: bytes) -> None:
        seen, since, pause = b"", time.monotonic(), 0.001
        while not _made(path, token):
            now = _content(path)
            if now != seen:
                seen, since = now, time.monotonic()
            if _is_dead(seen):
                self._take_away(path, seen)
            elif time.monotonic() - since > PATIENCE_S:
                raise StorageError(
                    f"{str(path)!r} has been held for {PATIENCE_S:.0f} s by {_owner(seen)}",
                    hint="here `flock` does not work, and this file is the lock: if no such "
                    "process is at work, delete it",
                )
            else:
                time.sleep(pause)
                pause = min(2 * pause, 0.1)

    def _take_away(self, path: Path, token: bytes) -> None:
        """Removes the lock of a process that is gone, and not one that was made since."""
        breaking = self._folder / BREAK_NAME
        if not _made(breaking, _token()):
            time.sleep(0.01)
            if _is_dead(_content(breaking)):
                raise StorageError(
                    f"{str(breaking)!r} was left behind by {_owner(_content(breaking))}",
                    hint="delete it: whoever made it is gone",
                )
            return
        try:
            if _content(path) == token:
                path.unlink(missing_ok=True)
        finally:
            breaking.unlink(missing_ok=True)


def locks_of(folder: Path) -> ModuleType:
    """The module of file locks, which Windows lacks; TensorStore's locks there were not tried.

    Asked for when a folder is written: history in memory and in buckets works without.

    Raises:
        StorageError: there is none.
    """
    if fcntl is None:
        raise StorageError(
            f"cannot write to {str(folder)!r}: this system has no fcntl.flock, "
            "on which compare-and-set in a folder relies",
            hint="keep the repository in a bucket (s3://, gs://) or in memory://; "
            "on Windows, run vcjax in WSL",
        )
    return fcntl


@cache
def file_options(folder: Path) -> dict[str, Any]:
    """What TensorStore's driver of files has to be told of a folder's file system.

    It guards each file by a record lock, and syncs the folder of each: where there are no
    such locks a file is one, and where folders cannot be synced it must sync nothing.
    """
    options: dict[str, Any] = {}
    with _unless_read_only(), (folder / LOCK_NAME).open("ab") as file:
        if not _has_record_locks(file.fileno()):
            options["file_io_locking"] = {"mode": "lockfile", "acquire_timeout": f"{PATIENCE_S}s"}
    if not fsync_folder(folder):
        options["file_io_sync"] = False
    return options


def fsync_folder(folder: Path) -> bool:
    """Makes durable which files a folder has; False if its file system does not know that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (*_NOT_THERE, errno.EINVAL):
            raise
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _unless_read_only() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


def _has_record_locks(descriptor: int) -> bool:
    if fcntl is None:
        return True  # TensorStore uses those of the system
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NOT_THERE
    return True


def _locks(descriptor: int, shared: bool = False) -> bool:
    """Takes the `flock` of an open file; False if there is none on its file system."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB if shared else fcntl.LOCK_EX)
    except BlockingIOError:  # somebody has it: it works
        return True
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise
    return True


def _made(path: Path, token: bytes) -> bool:
    """Makes a file that nobody else has made; False if somebody has."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, token)
    finally:
        os.close(descriptor)
    return True


@cache
def _machine() -> str:
    """This machine since it was started, as far as process numbers are the same; "" if unknown."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _token() -> bytes:
    fields = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
    return json.dumps({**fields, "nonce": secrets.token_hex(8)}).encode()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _fields(token: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        fields = json.loads(token)
        if isinstance(fields, dict) and isinstance(fields.get("pid"), int):
            return fields
    return {}


def _owner(token: bytes) -> str:
    fields = _fields(token)
    return f"process {fields['pid']} on {fields.get('host')}" if fields else "somebody unknown"


def _is_dead(token: bytes) -> bool:
    """Whether a token is of a process of this machine that is no more."""
    fields = _fields(token)
    if not fields or not _machine() or fields.get("machine") != _machine():
        return False
    try:
        os.kill(fields["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # somebody else's
        return False
    return False
