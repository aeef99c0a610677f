"""Opening checkpoint files and replacing them atomically, with errors that say what to do."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vcjax import errors

_HINTS = {
    errno.ENOSPC: "free some space on that disk, or write to another one",
    errno.EDQUOT: "your disk quota is used up; free some space or write to another disk",
    errno.EFBIG: "the file system or `ulimit -f` does not allow a file of this size",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.EROFS: "that file system is read-only; write to another one",
    errno.ENOENT: "check the spelling; the folder has to exist",
    errno.EISDIR: "give the path of a file, not of a folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter file name",
}


MAX_NAME_BYTES = 255
"""How long the name of a file may be, in bytes, on nearly every file system."""


def name_problem(name: str) -> str | None:
    """Why a name that a repository brings cannot be that of one file in a folder; None if it can.

    Whoever made the repository chose it, so that joined to a folder it might lead out of it.

    Example:
        >>> name_problem("weights.bin"), name_problem("../.profile")
        (None, 'it leads to another folder')
    """
    if name in ("", ".."):
        return "it names no file"
    if Path(name).name != name:  # by the rules of this machine: drives and backslashes, too
        return "it leads to another folder"
    if "\0" in name:
        return "it holds a NUL"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    return f"it is longer than {MAX_NAME_BYTES} bytes" if length > MAX_NAME_BYTES else None


def refuse_protected(path: Path, force_flag: str) -> None:
    """Refuses to write a file over what is likely to be wanted elsewhere, or is protected.

    Caches of content, such as those of DVC and of the Hugging Face Hub, hand out links to
    files that others use as well, and make them read-only.

    Args:
        path: what is about to be written.
        force_flag: what a user types to write it all the same, for the hint.

    Raises:
        StorageError: it is a symbolic link, or a file that nobody may write to.
    """
    if path.is_symlink():
        raise errors.StorageError(
            f"{str(path)!r} is a symbolic link to {os.readlink(path)!r}",
            hint=f"give the place itself, remove the link, or write through it with {force_flag}",
        )
    try:
        mode = path.stat().st_mode
    except OSError:  # not there yet; whatever else it is, writing will say so
        return
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise errors.StorageError(
            f"{str(path)!r} is read-only",
            hint=f"choose another file, or replace this one with {force_flag}",
        )


def storage_error(verb: str, path: Path, number: int | None, reason: str) -> errors.StorageError:
    """The `StorageError` for a refusal of the operating system, with a hint for its errno."""
    hint = _HINTS.get(number or 0, "check that the disk is mounted and healthy")
    return errors.StorageError(f"cannot {verb} {str(path)!r}: {reason}", hint=hint)


@contextmanager
def reading(path: Path, kind: str, *damage: type[Exception]) -> Iterator[None]:
    """Turns what goes wrong while a file is parsed into vcjax errors.

    Args:
        path: the file.
        kind: what it should be, for the message ("a safetensors file").
        *damage: the exceptions by which the parser reports a damaged file.

    Raises:
        FormatError: the parser raised one of `damage`.
        StorageError: the operating system refused.
    """
    try:
        yield
    except errors.VcjaxError:
        raise
    except (*damage, OSError) as error:
        # EINVAL is a seek to before the start of the file, by a damaged offset.
        if not isinstance(error, OSError) or error.errno == errno.EINVAL:
            reason = str(error) or type(error).__name__
            raise errors.FormatError(
                f"{str(path)!r} is damaged or not {kind}: {reason}",
                hint="copy or download the file again, or name the right format with format=",
                shell_hint="copy or download the file again; `vcjax commit` and `vcjax checkout` "
                "take the name of the right format with --format",
            ) from error
        raise storage_error("read", path, error.errno, error.strerror or str(error)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path that takes the place of `path` when the block ends well.

    The temporary file lies in the same folder, is on the disk (fsync) before it
    is renamed, and is removed if the block raises; `path` then still holds what
    it held before. A symbolic link is followed, and the permission bits of a
    file that is replaced are kept.

    Raises:
        StorageError: the operating system refused (disk full, no permission, …).
    """
    target = Path(os.path.realpath(path))
    # Not named after the target, whose name may already be as long as names can be.
    temporary = target.parent / f".vcjax-{secrets.token_hex(8)}.tmp"
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Created here with mode 0o666, so that the umask decides as for any other file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        # Only now: safetensors puts a file of its own, of mode 0o600, in the place of ours.
        temporary.chmod(mode & 0o7777)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except errors.VcjaxError:
        raise
    except OSError as error:
        raise storage_error("write", path, error.errno, error.strerror or str(error)) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the refusals of the operating system into `StorageError`s that name `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error("write", path, error.errno, error.strerror or str(error)) from error


def sync(path: Path) -> None:
    """Forces a file or folder to disk.

    Windows (which has no `O_DIRECTORY`) opens no folders, and forces to disk only what
    may be written.
    """
    on_windows = not hasattr(os, "O_DIRECTORY")
    if on_windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
