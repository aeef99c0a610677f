"""Taking a repository to the newest version of the disk format, step by step.

Every step can be interrupted anywhere and begun again: what was done is passed over, and
`vcjax.json`, which says the version, is changed last. Objects are never rewritten.
"""

from dataclasses import dataclass, replace
from typing import Any

from vcjax.errors import StorageError
from vcjax.history import Refs, canonical
from vcjax.history.keys import logged_name
from vcjax.history.ref import decode_detached, decode_ref
from vcjax.history.reflog import RefLog
from vcjax.history.refnames import HEAD
from vcjax.repo.settings import FORMAT_VERSION, KEY, Settings
from vcjax.storage import Store

TRIES = 100
"""How often a record is tried that somebody else keeps changing."""


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade does, or would do.

    Attributes:
        before: the version that the repository had.
        after: the version that it has then.
        records: keys of the refs and entries of the log that are written anew.
    """

    before: int
    after: int
    records: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for `--json`."""
        return {"before": self.before, "after": self.after, "records": list(self.records)}


def upgrade(store: Store, settings: Settings, dry_run: bool = False) -> Upgrade:
    """Takes a repository to the newest version of the format.

    Version 2 names every ref within its record and logs its present state too, so that one
    that was copied, exchanged or put back is noticed. Others may go on committing.

    Args:
        store: of the repository.
        settings: from its `vcjax.json`.
        dry_run: only say what would be done.

    Raises:
        CorruptionError: a record is damaged; nothing is changed from there on.
        StorageError: somebody else keeps changing a record.
    """
    if settings.version == FORMAT_VERSION:
        return Upgrade(settings.version, FORMAT_VERSION, ())
    refs = Refs(store)
    logged = [key for key in store.keys("log/") if logged_name(key)]
    present = [name for name in (*refs.names(), HEAD) if refs.get(name) is not None]
    keys = [key for key in (*logged, *present) if _is_nameless(store, key)]
    if not dry_run:
        for key in keys:
            _name(store, key)
        for name in present:
            if state := refs.get(name):
                RefLog(store).keep(state)
        _set_version(store, replace(settings, version=FORMAT_VERSION))
    return Upgrade(settings.version, FORMAT_VERSION, tuple(keys))


def _is_nameless(store: Store, key: str) -> bool:
    value = store.read(key)
    if value is None:
        return False
    body = canonical.decode_record(key, value, "run `vcjax fsck`")
    return "name" not in body and "ref" not in body


def _name(store: Store, key: str) -> None:
    """Writes the record of a ref, or an entry of the log, with its name; the same state."""
    name = logged_name(key)
    for _ in range(TRIES):
        seen = store.read_versioned(key)
        if seen.value is None:  # deleted meanwhile
            return
        if name is not None:
            ref = decode_ref(name, seen.value, key)
        else:
            ref = decode_detached(seen.value) if key == HEAD else decode_ref(key, seen.value)
        if ref is None or seen.value == ref.encode():
            return
        if store.compare_and_set(key, ref.encode(), seen):
            return
    raise StorageError(f"{key} keeps changing", hint="try again when less is committed")


def _set_version(store: Store, settings: Settings) -> None:
    seen = store.read_versioned(KEY)
    if seen.value != settings.encode() and not store.compare_and_set(KEY, settings.encode(), seen):
        raise StorageError(f"{KEY} was changed by somebody else meanwhile", hint="try again")
