"""The keys that a repository is made of: which names are ours, and which are strangers'.

Other programs leave files among ours: `.DS_Store`, conflicted copies, what NFS keeps of a
file that somebody still reads. They are passed over by name, everywhere.
"""

import re
from collections.abc import Iterable

from vcjax.history.refnames import HEAD, KINDS, is_name, prefix_of, short_name
from vcjax.storage.tensorstore_internals import TEMPORARY

_DIGEST = re.compile(r"[0-9a-f]{64}")

_OBJECT = re.compile(
    r"(?P<object>(?:leaves|packs|groups)/(?P<two>[0-9a-f]{2})/(?P=two)[0-9a-f]{62})"
    r"/(?:[A-Za-z0-9_-]{1,64}/)?(?:zarr\.json|c(?:/[0-9]+)*)"
)
"""A file of an object: of itself, or of one of the arrays within it."""

_RECORD = re.compile(r"(?:commits|manifests)/(?P<two>[0-9a-f]{2})/(?P=two)[0-9a-f]{62}\.msgpack")

_LOG = re.compile(r"log/(?P<name>.+)@[0-9]{12}\.json")

_OTHERS = re.compile(
    r"vcjax\.json|HEAD|pruned/[0-9a-f]{64}|merging/[0-9a-f]{64}\.msgpack"
    r"|orbax/root_metadata\.json|collecting/(?:unused|[0-9a-f]{16})\.json"
)

FOLDERS = (
    "leaves",
    "packs",
    "groups",
    "manifests",
    "commits",
    "refs",
    "aliases",
    "log",
    "merges",
    "merging",
    "pruned",
    "orbax",
    "collecting",
)
"""The folders of a repository."""


def is_ref(key: str) -> bool:
    """Whether a key may be that of a ref, by its name: of a branch, tag, remote or alias."""
    return bool(prefix_of(key)) and is_name(short_name(key))


def is_digest(text: str) -> bool:
    """Whether a text is a digest, as keys have them."""
    return _DIGEST.fullmatch(text) is not None


def is_record(key: str) -> bool:
    """Whether a key is that of a commit or a manifest."""
    return _RECORD.fullmatch(key) is not None


def logged_name(key: str) -> str | None:
    """The full name of the ref that a key of the log is of; None if it is no such key."""
    found = _LOG.fullmatch(key)
    name = found["name"] if found else ""
    return name if name == HEAD or is_ref(name) else None


def object_of(key: str) -> str | None:
    """The object that a file belongs to: a leaf object, pack or group; None if to none."""
    found = _OBJECT.fullmatch(key)
    return found["object"] if found else None


def is_ours(key: str) -> bool:
    """Whether a key is one that the disk format has; temporary files are none."""
    if key.endswith(TEMPORARY):
        return False
    if key.startswith("merges/"):
        target = key.removeprefix("merges/")
        return target == HEAD or is_ref(target)
    if key.startswith(tuple(KINDS)):
        return is_ref(key)
    if _OTHERS.fullmatch(key) or is_record(key):
        return True
    return object_of(key) is not None or logged_name(key) is not None


def strangers(keys: Iterable[str]) -> list[str]:
    """Those of some keys that are not ours."""
    return [key for key in keys if not is_ours(key)]
