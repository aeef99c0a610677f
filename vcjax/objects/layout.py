"""Where leaves are kept, what is kept how, and errors about stored arrays."""

from collections.abc import Iterator
from contextlib import contextmanager

from vcjax.errors import CorruptionError, MissingObjectError, StorageError, VcjaxError
from vcjax.history import LeafEntry
from vcjax.storage import Store
from vcjax.storage.tensorstore_internals import is_full, is_missing, is_refused, is_unreachable

OBJECT_FOLDERS = ("leaves", "packs", "groups")
"""Where objects are that a collector may take; each is a folder two levels below."""

INLINE_BYTES = 256
"""Arrays up to this size are kept in the manifest itself."""

PACKED_BYTES = 64 * 1024
"""Arrays below this size share a pack: one small file each costs more than their bytes."""

PACK_ALIGNMENT = 64
"""Leaves start at multiples of this in a pack, so that views of it are aligned for JAX."""

IN_FLIGHT_BYTES = 128 * 1024 * 1024
"""How many bytes may be on their way to or from the store at once."""

LAZY_IN_FLIGHT_BYTES = 8 * 1024 * 1024
"""The same of leaves that were read only to be stored, besides the one that is read next.

Two chunks: small leaves overlap, and of large ones a single one is on its way.
"""

HEADERS_AT_ONCE = 256
"""How many objects' headers are read before they are let go."""

RELY_SECONDS = 60.0
"""How long a mark that an object is relied upon serves for further commits."""

EMPTIED_SECONDS = 5.0
"""How long a writer waits for an object that is being deleted on a full disk."""

GRACE_SECONDS = 24 * 3600.0
"""The collector spares what was written more recently: it may belong to a commit in progress."""

COMMIT_SECONDS = 600.0
"""What a forced collection spares nevertheless: no commit is expected to take longer."""

HINT = "run `vcjax fsck`; restore the object from a copy of the repository"


def leaf_key(digest: str) -> str:
    """Where the leaf object with this digest is stored."""
    return f"leaves/{digest[:2]}/{digest}"


def pack_key(digest: str) -> str:
    """Where the pack with this digest is stored."""
    return f"packs/{digest[:2]}/{digest}"


def group_key(digest: str) -> str:
    """Where the leaves are stored together whose relation has this digest."""
    return f"groups/{digest[:2]}/{digest}"


@contextmanager
def array_errors(
    store: Store, key: str, path: str | None = None, writing: bool = False
) -> Iterator[None]:
    """Turns TensorStore's errors about one array into ours.

    Args:
        key: where the object is.
        path: leaf path of what is being read, if any.
        writing: whether it is being written: then the store is at fault, not the object.
    """
    subject = f"{key} in {store.url}" if path is None else f"leaf {path!r}: {key} in {store.url}"
    try:
        yield
    except VcjaxError:
        raise
    except (ValueError, OSError, RuntimeError, IndexError, NotImplementedError) as error:
        if is_full(error):
            hint = "the disk is full: free space and try again; no earlier commit is touched"
            raise StorageError(f"cannot write {subject}: {error}", hint=hint) from error
        if writing:
            hint = "check that you may write there; no earlier commit is touched"
            raise StorageError(f"cannot write {subject}: {error}", hint=hint) from error
        if is_missing(error):
            message = f"{subject} lacks a part of its data: {error}"
            raise MissingObjectError(message, hint=HINT, path=path) from error
        if is_refused(error) or is_unreachable(error):
            hint = "check that you may read and write there, and that it can be reached"
            raise StorageError(f"cannot access {subject}: {error}", hint=hint) from error
        message = f"{subject} is damaged: {error}"
        raise CorruptionError(message, hint=HINT, path=path) from error


def place_of(entry: LeafEntry) -> str:
    """Where a leaf's content is, in words."""
    if entry.is_inline:
        return "the manifest"
    return pack_key(entry.packed.pack) if entry.packed else leaf_key(entry.digest)
