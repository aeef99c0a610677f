"""Healing what can be made whole again, and putting aside what cannot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vcjax.errors import VcjaxError
from vcjax.history import Commit, Head, History, KeptMerges, LeafEntry, Prunings, Refs
from vcjax.history.refnames import HEADS
from vcjax.objects.header import ArrayHeader
from vcjax.objects.layout import leaf_key, pack_key
from vcjax.objects.liveness import ancestors, needs_of, tips_of
from vcjax.objects.store import ObjectStore
from vcjax.objects.stored_faults import excess, inner_faults, read_whole

QUARANTINE = "quarantine/"
"""Where damaged objects are put aside, under the key that they had."""


@dataclass
class RepairReport:
    """What a repair did.

    Attributes:
        healed: keys that are again as they were written.
        quarantined: {key of an object that cannot be read: digests of the commits that
            have leaves in it}. What was left of it is below `quarantine/`.
    """

    healed: list[str] = field(default_factory=list)
    quarantined: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for `--json`."""
        return {"healed": self.healed, "quarantined": self.quarantined}


def repair(
    refs: Refs,
    history: History,
    prunings: Prunings,
    objects: ObjectStore,
    branch: str,
    since: float = 0.0,
) -> RepairReport:
    """Heals metadata that follow from what is whole, and puts damaged objects aside.

    A lost or garbled `HEAD` is put on a branch. A `zarr.json` within a group is written
    anew from the group's, and what follows the end of a chunk is cut off. An object whose
    content cannot be read is moved to `quarantine/`, so that a later commit of the same
    leaf stores it anew. Refs are moved by nobody but the user: `fsck` names the command.

    Args:
        branch: the branch that `HEAD` is put on, if it has to be; else the first there is.
        since: former states of refs count if they were replaced after this time.

    Raises:
        CorruptionError: refs or commits cannot be read, so what is in use is not known.
    """
    report = RepairReport()
    _heal_head(report, refs, branch)
    tips = tips_of(refs, KeptMerges(objects.store), since)
    commits = [
        commit
        for commit in ancestors(history, tips).values()
        if prunings.get(commit.digest) is None
    ]
    entries, users = _used(history, commits)
    keys = sorted(users.keys() | _needs_of_readable(objects, users))
    headers = read_whole(objects, keys)
    _heal_metadata(report, objects, headers)
    _heal_chunks(report, objects, headers)
    for key in _damaged(objects, entries):
        report.quarantined[key] = sorted(users[key])
        _put_aside(objects, key)
    return report


def _heal_head(report: RepairReport, refs: Refs, branch: str) -> None:
    try:
        refs.head()
    except VcjaxError:
        branches = refs.under(HEADS)
        names = [ref.short for ref in branches.values()]
        refs.set_head(Head(branch if branch in names or not names else names[0]), "repair")
        report.healed.append("HEAD")


def _used(
    history: History, commits: Iterable[Commit]
) -> tuple[dict[str, list[LeafEntry]], dict[str, set[str]]]:
    """({key of an object: leaves in it}, {key: digests of the commits that have them})."""
    entries: dict[str, dict[tuple[Any, ...], LeafEntry]] = {}
    users: dict[str, set[str]] = {}
    for commit in commits:
        for entry in history.manifest(commit.manifest).leaves.values():
            if not entry.is_inline:
                packed = entry.packed
                key = leaf_key(entry.digest) if packed is None else pack_key(packed.pack)
                entries.setdefault(key, {})[(entry.digest, packed)] = entry
                users.setdefault(key, set()).add(commit.digest)
    return {key: list(found.values()) for key, found in entries.items()}, users


def _needs_of_readable(objects: ObjectStore, keys: Iterable[str]) -> set[str]:
    """What some objects stand on, as far as their headers can be read."""
    return needs_of(objects, [key for key, _ in read_whole(objects, sorted(keys))])


def _heal_metadata(
    report: RepairReport, objects: ObjectStore, headers: list[tuple[str, ArrayHeader]]
) -> None:
    wrong = inner_faults(objects.store, headers)
    objects.store.write_many(wrong.items())
    objects.store.sync()
    report.healed += wrong


def _heal_chunks(
    report: RepairReport, objects: ObjectStore, headers: list[tuple[str, ArrayHeader]]
) -> None:
    for key, header in headers:
        for chunk, size in excess(objects.store, key, header).items():
            value = objects.store.read(chunk)
            if value is not None:
                objects.store.write(chunk, value[:size])
                report.healed.append(chunk)


def _damaged(objects: ObjectStore, entries: Mapping[str, list[LeafEntry]]) -> list[str]:
    """The objects that leaves cannot be read from, without those whose base is at fault."""
    wrong: list[str] = []
    for key, leaves in entries.items():
        try:
            for leaf in leaves:
                for _ in objects.read({key: leaf}):
                    pass
        except VcjaxError:
            wrong.append(key)
    return [key for key in wrong if not _needs_of_readable(objects, [key]).intersection(wrong)]


def _put_aside(objects: ObjectStore, key: str) -> None:
    """Moves what is left of an object; its header goes first, so that nobody relies on it."""
    store = objects.store
    parts = store.keys(f"{key}/", links=False)
    for part, value in zip(parts, store.read_many(parts), strict=True):
        if value is not None:
            store.write(f"{QUARANTINE}{part}", value)
    store.sync()
    store.delete([f"{key}/zarr.json"])
    store.delete(part for part in parts if part != f"{key}/zarr.json")
    store.remove_empty_folders(key)
