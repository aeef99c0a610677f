"""safetensors folders in Hugging Face naming: read lazily, written tensor by tensor.

A folder holds `model.safetensors`, or shards `model-00001-of-00002.safetensors` and
`model.safetensors.index.json`, which says which tensor is in which shard.

`ShardWriter` knows all dtypes and shapes beforehand, so it writes every tensor to
its place as it comes, in parts, into files that get their names when all are
complete. What is complete is noted, so that whoever was interrupted goes on.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcjax import errors
from vcjax.formats import files
from vcjax.formats.protocol import Checkpoint
from vcjax.formats.safetensors import FORMAT, dtype_code

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
"""Size of a shard at the most, unless one tensor is larger, as Hugging Face writes them."""

JOURNAL = ".vcjax-merge.json"
NOTE_BYTES = 256 * 1024 * 1024
NOTE_SECONDS = 5.0
"""After so much, or so long, what is complete is forced to disk and noted."""

_SYNC_DATA = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


def is_folder(path: Path) -> bool:
    """Whether a folder holds safetensors in this naming."""
    return path.is_dir() and ((path / INDEX).is_file() or (path / SINGLE).is_file())


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        FormatError: there are none, or the index is damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise errors.FormatError(
            f"{str(folder)!r} has neither {SINGLE} nor {INDEX}",
            hint="give a folder that `save_pretrained` of transformers wrote, or one file",
        )
    damage = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
    with files.reading(index, "a safetensors index", *damage):
        names = list(dict.fromkeys(json.loads(index.read_text())["weight_map"].values()))
        for name in names:
            if not isinstance(name, str) or files.name_problem(name):
                raise ValueError(f"{name!r} is no file name"[:200])
    return [folder / name for name in names]


def read_folder(folder: Path) -> Checkpoint:
    """Maps all shards of a folder.

    Returns:
        {tensor name: read-only array}, in the order of shards and files.

    Raises:
        FormatError: a shard is damaged, or two have a tensor of the same name.
        StorageError: a shard is missing or cannot be read.
    """
    found: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for path in shard_files(folder):
        part = FORMAT.read(path)
        twice = found.keys() & part.tree.keys()
        if twice:
            raise errors.FormatError(
                f"{min(twice)!r} is in two shards of {str(folder)!r}", path=min(twice)
            )
        found |= part.tree
        metadata = metadata or part.metadata
    return Checkpoint(found, metadata)


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes."""

    shard: int
    offset: int
    dtype: np.dtype
    nbytes: int


class ShardWriter:
    """Writes a folder, or one file, of tensors whose dtypes and shapes are known.

    Args:
        target: a folder, made if there is none; or a file that ends in ".safetensors".
        specs: {tensor name: (dtype, shape)}, in the order of the file.
        metadata: strings for the headers.
        key: what is written, in a word: an interrupted writer of the same key is continued.
        shard_bytes: of data per shard.

    Raises:
        FormatError: safetensors has no such dtype.
        StorageError: the folder has safetensors already, or cannot be written; this system
            cannot write in the middle of files.
    """

    def __init__(
        self,
        target: Path,
        specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str],
        key: str,
        shard_bytes: int = SHARD_BYTES,
    ):
        if not hasattr(os, "pwrite"):
            raise errors.StorageError(
                f"cannot write {str(target)!r}: this system has no os.pwrite, by which tensors "
                "are written piece by piece",
                hint="on Windows, run vcjax in WSL",
            )
        self._file = target if target.suffix == ".safetensors" else None
        self._folder = target.parent if self._file else target
        self._key = key
        self._journal = self._folder / (f".{target.name}{JOURNAL}" if self._file else JOURNAL)
        self._places, headers = _layout(specs, metadata, math.inf if self._file else shard_bytes)
        self._sizes = [
            len(header)
            + sum(place.nbytes for place in self._places.values() if place.shard == number)
            for number, header in enumerate(headers)
        ]
        self._starts = [len(header) for header in headers]
        self._complete: list[str] = []
        self._unnoted = 0
        self._noted_at = time.monotonic()
        self._handles: list[int] = []
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._refuse_others()
            self.complete = self._resumed()
            self._open(headers)

    def _writing(self) -> Any:
        return files.writing(self._folder)

    def _refuse_others(self) -> None:
        if self._file is None and (others := sorted(self._folder.glob("*.safetensors*"))):
            raise errors.StorageError(
                f"{str(self._folder)!r} holds a model already: {others[0].name}",
                hint="give a new folder, or remove what is there",
            )

    def _partial(self, number: int) -> Path:
        return self._journal.with_name(f"{self._journal.name}.{number:05}")

    def _resumed(self) -> set[str]:
        """The tensors that an earlier writer of the same has completed."""
        partials = [self._partial(number) for number in range(len(self._sizes))]
        try:
            lines = [json.loads(line) for line in self._journal.read_text().splitlines()]
        except (FileNotFoundError, ValueError):
            lines = []
        sizes = [path.stat().st_size if path.exists() else -1 for path in partials]
        if lines and lines[0] == self._head and sizes == self._sizes:
            return {name for line in lines[1:] for name in line if name in self._places}
        for path in self._folder.glob(f"{self._journal.name}*"):
            path.unlink()
        return set()

    @property
    def _head(self) -> dict[str, Any]:
        return {"key": self._key, "sizes": self._sizes}

    def _open(self, headers: list[bytes]) -> None:
        for number, header in enumerate(headers):
            handle = os.open(self._partial(number), os.O_RDWR | os.O_CREAT, 0o666)
            self._handles.append(handle)
            if not self.complete:
                os.truncate(handle, self._sizes[number])
                _write_all(handle, header, 0)
        if not self.complete:
            self._journal.write_text(json.dumps(self._head) + "\n")

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Writes a part of a tensor.

        Args:
            name: of the tensor.
            start: where the part begins, elements.
            values: flat, of the tensor's dtype.
        """
        place = self._places[name]
        if values.dtype != place.dtype:
            raise TypeError(f"{name!r} is of {place.dtype}, not {values.dtype}")
        offset = self._starts[place.shard] + place.offset + start * place.dtype.itemsize
        content = np.ascontiguousarray(values).view(np.uint8)
        with self._writing():
            _write_all(self._handles[place.shard], content.data, offset)
            self._unnoted += content.nbytes
            if (start + values.size) * place.dtype.itemsize == place.nbytes:
                self._complete.append(name)
                late = time.monotonic() - self._noted_at > NOTE_SECONDS
                if self._unnoted > NOTE_BYTES or late:
                    self._note()

    def _note(self) -> None:
        for handle in self._handles:
            _SYNC_DATA(handle)
        with self._journal.open("a") as journal:
            journal.write(json.dumps(self._complete) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self.complete |= set(self._complete)
        self._complete, self._unnoted, self._noted_at = [], 0, time.monotonic()

    def finish(self) -> list[Path]:
        """Gives the files their names; they are on disk then.

        Returns:
            The files, the index last where there is one.

        Raises:
            FormatError: a tensor was not written.
        """
        lacking = self._places.keys() - self.complete - set(self._complete)
        if lacking:
            raise errors.FormatError(f"{min(lacking)!r} was not written", path=min(lacking))
        with self._writing():
            names = self._names()
            for number, handle in enumerate(self._handles):
                os.fsync(handle)
                os.close(handle)
                self._partial(number).replace(self._folder / names[number])
            self._handles = []
            if len(names) > 1:
                self._write_index(names)
                names = [*names, INDEX]
            self._journal.unlink()
            files.sync(self._folder)
        return [self._folder / name for name in names]

    def close(self) -> None:
        """Leaves what was written for a later writer to continue."""
        if self._handles and self._complete:
            with self._writing():
                self._note()
        while self._handles:
            os.close(self._handles.pop())

    def _names(self) -> list[str]:
        if self._file is not None:
            return [self._file.name]
        count = len(self._sizes)
        if count == 1:
            return [SINGLE]
        return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]

    def _write_index(self, names: list[str]) -> None:
        total = sum(place.nbytes for place in self._places.values())
        weights = {name: names[place.shard] for name, place in self._places.items()}
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        with files.replacing(self._folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n")


def _layout(
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str],
    shard_bytes: float,
) -> tuple[dict[str, _Place], list[bytes]]:
    """Where every tensor goes, and the shards' headers with their lengths."""
    places: dict[str, _Place] = {}
    tables: list[dict[str, Any]] = []
    end = 0
    for name, (kind, shape) in specs.items():
        dtype = np.dtype(kind)
        nbytes = math.prod(shape) * dtype.itemsize
        if not tables or (end and end + nbytes > shard_bytes):
            tables.append({"__metadata__": dict(sorted(metadata.items()))} if metadata else {})
            end = 0
        places[name] = _Place(len(tables) - 1, end, dtype, nbytes)
        tables[-1][name] = {
            "dtype": dtype_code(name, dtype),
            "shape": list(shape),
            "data_offsets": [end, end + nbytes],
        }
        end += nbytes
    headers = []
    for table in tables or [{}]:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text = text.ljust(-(-(len(text) + 8) // 64) * 64 - 8)  # aligned data need no copy
        headers.append(len(text).to_bytes(8, "little") + text)
    return places, headers


def _write_all(handle: int, content: Any, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
