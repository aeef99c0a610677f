"""Reading, writing and compare-and-set of keys, durable on the local disk."""

import mmap
import os
import threading
import time
from collections.abc import Container, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import tensorstore as ts

from vcjax.errors import RepositoryNotFoundError, StorageError
from vcjax.storage import clock
from vcjax.storage import folder as folders_
from vcjax.storage.lock import LOCK_NAME, FolderLock, file_options, fsync_folder, locks_of
from vcjax.storage.refusal import storage_errors
from vcjax.storage.tensorstore_internals import TEMPORARY
from vcjax.storage.urls import Location, parse_url

_NO_KEYS = (TEMPORARY, LOCK_NAME)


@dataclass(frozen=True, slots=True)
class Versioned:
    """What a key held when it was read; what `compare_and_set` compares with.

    Attributes:
        value: None if the key did not exist.
        generation: the store's own name for this version.
    """

    value: bytes | None
    generation: bytes


@cache
def _context() -> ts.Context:
    """One context for the process, so that `memory://NAME` is the same store everywhere."""
    return ts.Context()


class Store:
    """Keys and values at a URL. Values are bytes; keys are `/`-separated paths.

    Writes are durable one by one except for the folders that they create: call
    `sync` before publishing something that refers to them.

    Attributes:
        url: where it is.
        location: the same, taken apart.
        marker: a key that is always there, once it is known to be; a folder without it was
            unmounted, moved or deleted, and is not one that lacks what is asked for.
    """

    def __init__(self, location: Location):
        self.location = location
        self.url = location.url
        self._folder_lock = None if location.folder is None else FolderLock(location.folder)
        self._spec = self._fitting_spec()
        self._kv = self._opened()
        self.marker: str | None = None
        self._durable_folders: set[str] = set()
        self._unsynced: set[str] = set()
        self._lock = threading.Lock()
        self._ahead: float | None = None

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def _opened(self) -> ts.KvStore:
        with storage_errors("open", self.url, ""):
            return ts.KvStore.open(self._spec, context=_context()).result(self.location.timeout_s)

    def _fitting_spec(self) -> dict[str, Any]:
        """The key-value spec, with what the file system of a folder lacks."""
        folder = self.location.folder
        is_known = folder is not None and (folder / LOCK_NAME).exists()
        with storage_errors("open", self.url, ""):
            return {**self.location.spec, **(file_options(folder) if folder and is_known else {})}

    @property
    def lock(self) -> str | None:
        """What serialises `compare_and_set`: "flock", or a "file"; None where nothing has to."""
        if self._folder_lock is None:
            return None
        with storage_errors("lock", self.url, LOCK_NAME):
            return self._folder_lock.kind

    # -- reading ---------------------------------------------------------------

    def read(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        return self.read_many([key])[0]

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of several keys, fetched concurrently."""
        futures = [self._kv.read(key) for key in keys]
        values: list[bytes | None] = []
        for key, future in zip(keys, futures, strict=True):
            with storage_errors("read", self.url, key):
                result = future.result(self.location.timeout_s)
            values.append(result.value if result.state == "value" else None)
        if None in values:
            self._require_marker()
        return values

    def read_versioned(self, key: str) -> Versioned:
        """The value of a key and its generation, for `compare_and_set`."""
        with storage_errors("read", self.url, key):
            result = self._kv.read(key).result(self.location.timeout_s)
        value = result.value if result.state == "value" else None
        if value is None:
            self._require_marker()
        return Versioned(value, result.stamp.generation)

    def _require_marker(self) -> None:
        folder = self.location.folder
        if folder is None or self.marker is None or (folder / self.marker).exists():
            return
        raise RepositoryNotFoundError(
            f"the repository in {self.url} is not there any more: it has been there before",
            hint="see whether its disk is mounted, or whether somebody moved or deleted the folder",
        )

    def mapped(self, key: str) -> memoryview | None:
        """The value of a key as mapped memory: of an immutable one, in a folder.

        Nothing is read before it is looked at. An error of the disk then ends the
        process, as where Git maps its objects; one that is found missing, or empty, here
        is None, as everything in a store that is no folder.
        """
        if self.location.folder is None:
            return None
        try:
            with (self.location.folder / key).open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):
            return None

    def exists(self, key: str) -> bool:
        """Whether a key has a value."""
        if self.location.folder is not None:
            return (self.location.folder / key).is_file()
        return key in self.keys(key)

    def keys(self, prefix: str = "", without: Container[str] = (), links: bool = True) -> list[str]:
        """All keys that begin with `prefix`, sorted.

        Args:
            without: keys of no interest; in a folder, passing over them saves two thirds.
            links: whether symbolic links count as what they lead to; not for who deletes.
        """
        found = self._list(prefix, without, links)
        return sorted(key for key in found if not key.endswith(_NO_KEYS))

    def _list(self, prefix: str, without: Container[str] = (), links: bool = True) -> list[str]:
        """As `keys`, temporary files included."""
        root = self.location.folder
        if root is not None:
            with storage_errors("list", self.url, prefix):
                at = prefix.rfind("/") + 1
                if not links and folders_.leads_out(root, prefix[:at]):
                    return []
                parts = prefix[:at], prefix[at:], without, links
                found = folders_.files(os.fspath(root), *parts)
            if not found:
                self._require_marker()
            return found
        upper = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
        with storage_errors("list", self.url, prefix):
            listed = self._kv.list(ts.KvStore.KeyRange(prefix, upper)).result(
                self.location.timeout_s
            )
        names = (key.decode(errors="replace") for key in listed)
        return [key for key in names if key not in without]

    @property
    def tells_ages(self) -> bool:
        """Whether `modified` knows when keys were written."""
        return self.location.folder is not None

    def now(self) -> float:
        """The time by the store's own clock, seconds since 1970 UTC.

        That of the file system or of the bucket's service, which all who work there have in
        common: by a clock of its own, a machine may take what was just written for old.
        """
        if (root := self.location.folder) is not None:
            self._require_marker()  # asking makes a file
            with storage_errors("ask the time of", self.url, LOCK_NAME):
                locks_of(root)  # where nothing may be written, nothing is touched
                return folders_.now(root, LOCK_NAME)
        if self.location.spec["driver"] == "memory":
            return time.time()
        if self._ahead is None:
            self._ahead = clock.offset(self.location)
        return time.time() + self._ahead

    def stamp(self) -> float:
        """The time for something that is written now: as `now`, where the service says it."""
        try:
            return self.now()
        except StorageError:  # writing does not depend on it; who collects asks again
            return time.time()

    def modified(self, key: str) -> float | None:
        """When a key was last written, seconds since 1970 UTC by the store's clock.

        None where the store does not tell (TensorStore shows no such time for
        buckets), the key is gone or a link.
        """
        root = self.location.folder
        return None if root is None else folders_.modified(root, key)

    def size(self, key: str) -> int:
        """Size of the value of a key in bytes; 0 if it is gone."""
        if self.location.folder is not None:
            path = self.location.folder / key
            return path.stat().st_size if path.exists() else 0
        return len(self.read(key) or b"")

    # -- writing ---------------------------------------------------------------

    def write(self, key: str, value: bytes) -> None:
        """Writes an immutable object. Durable after `sync`."""
        self.write_many([(key, value)])

    def write_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Writes several immutable objects concurrently. Durable after `sync`."""
        pending = []
        self._require_marker()
        for key, value in items:
            self._empty_leftover(key)
            pending.append((key, self._kv.write(key, value)))
        for key, future in pending:
            with storage_errors("write", self.url, key):
                future.result(self.location.timeout_s)
            self.written(key)

    def compare_and_set(self, key: str, value: bytes | None, expected: Versioned) -> bool:
        """Replaces (or, with None, deletes) a key only if nobody else has, durably.

        Everything written before is made durable first. In a folder TensorStore
        tells versions apart by inode and modification time, which come back when
        a file is replaced twice within one clock tick; a file lock and a
        comparison of the contents close that gap.

        Returns:
            False when somebody else was faster. With `s3://` a lost *response*
            also reads False: read the key back to be sure.
        """
        self._require_marker()
        self.sync()
        held = nullcontext() if self._folder_lock is None else self._folder_lock.held()
        with storage_errors("write", self.url, key), held:
            if self.location.folder is not None and self.read(key) != expected.value:
                return False
            self._empty_leftover(key)
            stamp = self._kv.write(key, value, if_equal=expected.generation).result(
                self.location.timeout_s
            )
        if not stamp.generation:
            return False
        if value is not None:
            self.written(key)
            self.sync()
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes keys; those that do not exist are passed over."""
        futures = [(key, self._kv.write(key, None)) for key in keys]
        for key, future in futures:
            with storage_errors("delete", self.url, key):
                future.result(self.location.timeout_s)

    def remove_empty_folders(self, key: str) -> None:
        """Removes the folder `key` and those below it, if no file is in them."""
        if self.location.folder is None:
            return
        for folder, _, _ in os.walk(self.location.folder / key, topdown=False):
            with suppress(OSError):  # not empty, or somebody else removed it
                os.rmdir(folder)
        with self._lock:
            self._durable_folders.clear()

    def leftovers(self, prefix: str, links: bool = False) -> list[str]:
        """Keys of the temporary files below a folder that killed writers have left behind.

        `keys` does not list them, and nothing ever reads them. A writer at work
        has such a file too: only old ones are leftovers.
        """
        if self.location.folder is None:
            return []
        found = self._list(f"{prefix}/" if prefix else "", links=links)
        return sorted(key for key in found if key.endswith(TEMPORARY))

    def empty_leftovers(self, prefix: str) -> None:
        """Makes it safe to write below a folder in which a writer may have been killed.

        Raises:
            StorageError: a folder cannot be written safely on this system.
        """
        if self.location.folder is not None:
            locks_of(self.location.folder)
        for key in self.leftovers(prefix, links=True):
            self._empty_leftover(key.removesuffix(TEMPORARY))

    def _empty_leftover(self, key: str) -> None:
        """Empties the temporary file that a killed writer of `key` has left, if any.

        TensorStore (0.1.86) writes over the beginning of such a file and then renames
        it: where the new value is shorter, the end of the old one would be part of it.
        Its own lock tells whether a writer is at work.
        """
        if self.location.folder is None or "file_io_locking" in self._spec:
            return
        fcntl, path = locks_of(self.location.folder), self.location.folder / (key + TEMPORARY)
        with (
            suppress(FileNotFoundError, PermissionError, BlockingIOError),
            path.open("r+b") as file,
        ):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # not renamed meanwhile
                os.ftruncate(file.fileno(), 0)

    def remove_leftovers(self, keys: Iterable[str]) -> None:
        """Removes what `leftovers` found."""
        for key in keys:
            assert self.location.folder is not None
            with storage_errors("delete", self.url, key):
                (self.location.folder / key).unlink(missing_ok=True)

    def make_folder(self) -> None:
        """Creates the folder of a local store, durably.

        Raises:
            StorageError: it cannot be created, or not be written safely on this system.
        """
        folder = self.location.folder
        if folder is None:
            return
        locks_of(folder)  # before anything is made
        with storage_errors("create", self.url, ""):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for path in missing:
                fsync_folder(path.parent)
            (folder / LOCK_NAME).touch()
        self._spec = self._fitting_spec()
        self._kv = self._opened()

    # -- arrays and durability -------------------------------------------------

    def array_spec(self, key: str) -> dict[str, Any]:
        """TensorStore key-value spec of the folder `key`, for opening an array there."""
        self._require_marker()
        spec = dict(self._spec)
        spec["path"] = f"{spec.get('path', '')}{key}/"
        return spec

    @property
    def context(self) -> ts.Context:
        """The TensorStore context that arrays of this store must be opened with."""
        return _context()

    def written(self, key: str) -> None:
        """Notes that something else (an array) wrote below or at `key`, for `sync`."""
        if self.location.folder is not None:
            with self._lock:
                self._unsynced.update(str(parent) for parent in PurePosixPath(key).parents)

    def sync(self) -> None:
        """Makes durable the folders that writes have created.

        TensorStore syncs each file and the folder it lies in, but not the folders
        above it that it had to create. A no-op on buckets and in memory. Where folders
        cannot be synced it would fail, and everything is synced here instead.
        """
        root = self.location.folder
        if root is None:
            return
        with self._lock:
            folders = self._unsynced - self._durable_folders
        if self._unsynced and self._spec.get("file_io_sync") is False:
            os.sync()
        for parent in sorted({(root / name).parent for name in folders if name != "."}):
            with storage_errors("sync", self.url, str(parent)):
                fsync_folder(parent)
        with self._lock:
            self._unsynced -= folders
            self._durable_folders |= folders


def open_store(url: str | os.PathLike[str]) -> Store:
    """Opens the store at a path or URL (see `parse_url`); creates nothing."""
    return Store(parse_url(url))
