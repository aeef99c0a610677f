"""`vcjax.json`: what makes a folder or bucket prefix a repository."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcjax.errors import (
    CorruptionError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    UnknownFormatError,
)
from vcjax.hashing import checksum
from vcjax.storage import Store, open_store

FORMAT_VERSION = 2
"""The version that new repositories have; `vcjax.repo.upgrade` takes older ones to it."""

READABLE = (1, 2)
"""The versions that are read and written. In both, records may name themselves."""

KEY = "vcjax.json"
FOLDER = ".vcjax"
"""The folder that `vcjax init` makes in a project, as Git makes `.git`."""


@dataclass(frozen=True)
class Settings:
    """The settings of a repository.

    Attributes:
        compress: whether new leaf objects are compressed (zstd behind a byte shuffle).
        version: of the disk format.
    """

    compress: bool = False
    version: int = FORMAT_VERSION

    def encode(self) -> bytes:
        """The bytes of `vcjax.json`."""
        body: dict[str, Any] = {
            "format": self.version,
            "settings": {"compress": self.compress},
        }
        if self.version > 1:
            body["needs"] = []
        return json.dumps({**body, "check": checksum(body)}, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, url: str, data: bytes) -> "Settings":
        """The settings in a stored `vcjax.json`.

        Raises:
            UnknownFormatError: it is of another version, or needs what this one has not.
            CorruptionError: it cannot be parsed, or lacks its checksum.
        """
        needs: list[str] = []
        try:
            body = json.loads(data)
            version = body["format"]
            # Of a later version neither the members nor the rule of the checksum are known.
            if type(version) is int and version in READABLE:
                if body["check"] != checksum(body):
                    raise ValueError("it does not have its checksum")
                needs = [str(need) for need in body.get("needs", [])]
                if not needs:
                    return cls(bool(body["settings"]["compress"]), version)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            usual = cls().encode().decode()
            raise CorruptionError(
                f"{KEY} in {url} is damaged: {error!r}", hint=f"its usual content is {usual}"
            ) from error
        if needs:
            raise UnknownFormatError(
                f"the repository in {url} needs {', '.join(needs)}, which this vcjax does not have",
                hint="upgrade vcjax",
            )
        raise UnknownFormatError(
            f"the repository in {url} has format version {version!r}; "
            f"this vcjax reads versions {' and '.join(map(str, READABLE))}",
            hint="upgrade vcjax",
        )


def create(store: Store, settings: Settings, prepare: Callable[[], object]) -> None:
    """Makes a store a repository.

    Args:
        prepare: writes what a repository cannot do without. Called before
            `vcjax.json` is written, so that a crash leaves no half of a repository.

    Raises:
        RepositoryExistsError: it is one already.
    """
    if store.location.folder is not None:
        store.make_folder()
    versioned = store.read_versioned(KEY)
    if versioned.value is None:
        prepare()
        if store.compare_and_set(KEY, settings.encode(), versioned):
            store.marker = KEY
            return
    raise RepositoryExistsError(
        f"there is a repository in {store.url} already",
        hint="open it with `Repository.open`, or choose another place",
        shell_hint=f"name it with --repo={store.url}, or choose another place",
    )


def make(store: Store, settings: Settings, prepare: Callable[[], object], exist_ok: bool) -> None:
    """Makes a store a repository, unless it may be one already and is.

    Args:
        store: where.
        settings: of the repository.
        prepare: as for `create`.
        exist_ok: whether there may be one.

    Raises:
        RepositoryExistsError: there is one, and not `exist_ok`.
    """
    if exist_ok and store.read(KEY) is not None:
        return
    try:
        create(store, settings, prepare)
    except RepositoryExistsError:  # perhaps somebody was faster
        if not exist_ok:
            raise


def load(store: Store) -> Settings:
    """The settings of the repository in a store.

    Raises:
        RepositoryNotFoundError: there is none.
        UnknownFormatError: it is of another version.
    """
    data = store.read(KEY)
    if data is None:
        outer = enclosing(store)
        within = (
            None if outer is None else f"it lies within the repository in {outer}: open that one"
        )
        raise RepositoryNotFoundError(
            f"there is no repository in {store.url}",
            hint=within or "make one with `vcjax.Repository.init(url)`",
            shell_hint=within or "make one with `vcjax init`, or name another one with --repo",
        )
    settings = Settings.decode(store.url, data)
    store.marker = KEY
    return settings


def enclosing(store: Store) -> Path | None:
    """The repository that the folder of a store lies within, as that of a step does."""
    folder = store.location.folder
    if folder is None:
        return None
    return next((above for above in folder.parents if (above / KEY).is_file()), None)


def locate(url: str | os.PathLike[str]) -> Store:
    """The store of the repository at a URL; a project's folder stands for its `.vcjax`."""
    store = open_store(url)
    folder = store.location.folder
    if folder is not None and not (folder / KEY).exists() and (folder / FOLDER / KEY).exists():
        return open_store(folder / FOLDER)
    return store


def find(start: str | os.PathLike[str] = ".") -> Path:
    """The repository of the folder `start` or the nearest folder above it that has one.

    Raises:
        RepositoryNotFoundError: none of them has one.
    """
    folder = Path(start).absolute()
    for candidate in (folder, *folder.parents):
        if (candidate / FOLDER / KEY).exists():
            return candidate / FOLDER
        if (candidate / KEY).exists():
            return candidate
    raise RepositoryNotFoundError(
        f"there is no repository in {folder} or any folder above it",
        hint="make one with `vcjax.Repository.init(url)`, or name one with "
        "`vcjax.Repository.open(url)`",
        shell_hint="make one with `vcjax init`, or name one with --repo or VCJAX_REPO",
    )
