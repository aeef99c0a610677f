"""Where merged leaves go: into a store, batch by batch, or into safetensors, part by part.

Both note what is complete, under a key that says what is being made, so that
a merge that was killed goes on where it was.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vcjax import tree
from vcjax._version import __version__
from vcjax.errors import VcjaxError
from vcjax.formats.sharded import SHARD_BYTES, ShardWriter
from vcjax.hashing import digest_bytes
from vcjax.history import LeafEntry, Manifest
from vcjax.merging import MergeMethod
from vcjax.objects import ObjectStore
from vcjax.objects.write import stage
from vcjax.streaming.executor import Piece, execute
from vcjax.streaming.job import Job

BATCH_BYTES = 64 * 1024 * 1024
"""How many bytes of merged leaves are stored at once; a larger leaf alone."""

DIGEST_BYTES = 32

Progress = Callable[[int, int], None]
"""Called with the bytes that were read so far, and of all."""


class Output(Protocol):
    """Takes the parts of merged leaves."""

    @property
    def complete(self) -> set[str]:
        """Paths of leaves that are there already, from a merge that was interrupted."""
        ...

    def write(self, piece: Piece) -> None:
        """Takes one part."""
        ...

    def close(self) -> None:
        """Notes what is complete, if not everything is."""
        ...


class Gatherer:
    """Puts the parts of leaves together."""

    def __init__(self) -> None:
        self._begun: dict[str, np.ndarray] = {}

    def add(self, piece: Piece) -> tree.Leaf | None:
        """The leaf, once this was its last part; parts come in order."""
        job, values = piece.job, piece.values
        if job.spec.is_value:
            return tree.Leaf(job.spec, values)
        if values.size < job.size:
            if job.path not in self._begun:
                self._begun[job.path] = np.empty(job.size, values.dtype)
            begun = self._begun[job.path]
            stop = piece.start + values.size
            begun[piece.start : stop] = values
            if stop < job.size:
                return None
            values = self._begun.pop(job.path)
        return tree.Leaf(job.spec, values.reshape(job.spec.shape))


class StoreOutput:
    """Stores merged leaves; `finish` gives their entries.

    Args:
        objects: where to.
        key: what is made (64 hex digits); None to take no notes.
    """

    def __init__(self, objects: ObjectStore, key: str | None):
        self._objects = objects
        self._note_key = None if key is None else f"merging/{key}.msgpack"
        self._entries = self._noted()
        self._gatherer = Gatherer()
        self._batch: dict[str, tree.Leaf] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vcjax-merge-store")
        self._staging: Future[None] | None = None

    def _noted(self) -> dict[str, LeafEntry]:
        """What an interrupted merge of the same has stored, if it is all still there."""
        text = None if self._note_key is None else self._objects.store.read(self._note_key)
        if text is None:
            return {}
        try:
            found = Manifest.decode(text[:DIGEST_BYTES].hex(), text[DIGEST_BYTES:])
        except VcjaxError:  # a note that is damaged is no note
            return {}
        names, entries = found.root.keys, found.root.children
        held = self._objects.hold(entries)
        return dict(zip(names, entries, strict=True)) if held else {}

    @property
    def complete(self) -> set[str]:
        """See `Output`."""
        return set(self._entries)

    def write(self, piece: Piece) -> None:
        """See `Output`."""
        leaf = self._gatherer.add(piece)
        if leaf is None:
            return
        self._batch[piece.job.path] = leaf
        sizes = (leaf.data.nbytes for leaf in self._batch.values() if not leaf.spec.is_value)
        if sum(sizes) >= BATCH_BYTES:
            self._stage()

    def _stage(self) -> None:
        """Stores the batch, while the next leaves are computed."""
        self._wait()
        batch, self._batch = self._batch, {}
        if batch:
            self._staging = self._worker.submit(self._store, batch)

    def _store(self, batch: dict[str, tree.Leaf]) -> None:
        paths = tuple(batch)
        manifest = stage(tree.Node("dict", paths, tuple(batch.values())), self._objects)
        self._entries |= dict(zip(paths, manifest.root.children, strict=True))
        if self._note_key is not None:
            digest, data = Manifest(_as_dict(self._entries)).encode()
            self._objects.store.write(self._note_key, bytes.fromhex(digest) + data)

    def _wait(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            staging.result()

    def finish(self) -> dict[str, LeafEntry]:
        """{path of a merged leaf: its entry}; all are stored."""
        self._stage()
        self._wait()
        return dict(self._entries)

    def close(self) -> None:
        """See `Output`."""
        self._worker.shutdown()

    def forget(self) -> None:
        """Removes the note: a commit leads to the leaves now."""
        if self._note_key is not None:
            self._objects.store.delete([self._note_key])


def _as_dict(entries: Mapping[str, LeafEntry]) -> tree.Node:
    names = tuple(sorted(entries))
    return tree.Node("dict", names, tuple(entries[name] for name in names))


class FileOutput:
    """Writes merged leaves to a folder of safetensors, or one file.

    Args:
        target: folder, or file that ends in ".safetensors".
        jobs: everything that will be written.
        metadata: strings for the headers.
        key: what is made.
        shard_bytes: size of a shard at the most.
    """

    def __init__(
        self,
        target: Path,
        jobs: Iterable[Job],
        metadata: Mapping[str, str],
        key: str,
        shard_bytes: int = SHARD_BYTES,
    ):
        specs = {
            job.path: (tree.storage_dtype(job.spec.dtype), job.spec.shape)
            for job in jobs
            if not job.spec.is_value
        }
        self._writer = ShardWriter(target, specs, metadata, key, shard_bytes)

    @property
    def complete(self) -> set[str]:
        """See `Output`."""
        return set(self._writer.complete)

    def write(self, piece: Piece) -> None:
        """See `Output`."""
        if not piece.job.spec.is_value:  # safetensors hold arrays alone
            self._writer.write(piece.job.path, piece.start, piece.values)

    def finish(self) -> list[Path]:
        """Gives the files their names; they are on disk then."""
        return self._writer.finish()

    def close(self) -> None:
        """See `Output`."""
        self._writer.close()


def run_into_store(
    jobs: Sequence[Job],
    objects: ObjectStore,
    key: str | None,
    random_key: Any,
    progress: Progress | None = None,
) -> StoreOutput:
    """Runs jobs that an interrupted merge of the same fingerprint has not done yet."""
    output = StoreOutput(objects, key)
    with closing(output):
        given = {"done": output.complete, "key": random_key, "progress": progress}
        with closing(execute(jobs, **given)) as pieces:  # pyright: ignore
            for piece in pieces:
                output.write(piece)
        output.finish()
    return output


def run_into_files(
    jobs: Sequence[Job],
    target: Path,
    metadata: Mapping[str, str],
    key: str,
    random_key: Any,
    *,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Runs jobs that an interrupted merge of the same key has not done yet."""
    output = FileOutput(target, jobs, metadata, key, shard_bytes)
    with closing(output):
        given = {"done": output.complete, "key": random_key, "progress": progress}
        with closing(execute(jobs, **given)) as pieces:  # pyright: ignore
            for piece in pieces:
                output.write(piece)
        return output.finish()


def fingerprint(**parts: Any) -> str:
    """64 hex digits that stand for what a merge is made of, and which vcjax makes it."""
    return digest_bytes(repr((__version__, sorted(parts.items()))).encode()).hex()


def unrepeatable(method: MergeMethod) -> dict[str, str]:
    """What sets a merge apart from all others if its method's record is not all of the method."""
    return {} if method.can_be_made_again else {"once": secrets.token_hex(16)}
