"""What collectors say while they are at work: `collecting/`."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vcjax.history import canonical
from vcjax.history.keys import is_ours
from vcjax.storage import Store

PREFIX = "collecting/"
UNUSED = f"{PREFIX}unused.json"

DELETION_SECONDS = 600.0
"""A deletion that takes longer than this was interrupted; a writer may take over."""

_HINT = "delete it: it only says what a collector was about to do"


class Collecting:
    """Which commits and manifests are about to be deleted, and since when others are unused.

    Commits and manifests are bytes that their digest names, so nothing can be written into
    them. A collector that is about to delete some says so first, and then looks once more
    whether anybody has written them anew. A writer writes first and then looks who is about
    to delete: one of the two always sees the other.
    """

    def __init__(self, store: Store):
        self._store = store

    @contextmanager
    def announced(self, keys: Iterable[str]) -> Iterator[None]:
        """Says, as long as the context is open, that some keys are about to be deleted."""
        mine = f"{PREFIX}{os.urandom(8).hex()}.json"
        body = {"keys": sorted(keys), "time": self._store.now()}
        self._store.write(mine, canonical.encode_record(body))
        self._store.sync()
        yield  # if the deletion fails, what is left of it is not known: the word stays
        self._store.delete([mine])

    def wait_for(self, keys: Iterable[str]) -> bool:
        """Waits until nobody is about to delete any of some keys; whether anybody was.

        At most for `DELETION_SECONDS`: a collector that takes longer was killed.
        """
        wanted, waited = frozenset(keys), False
        deadline = time.monotonic() + DELETION_SECONDS
        while self._are_announced(wanted) and time.monotonic() < deadline:
            waited = True
            time.sleep(0.05)
        return waited

    def _are_announced(self, wanted: frozenset[str]) -> bool:
        now = None
        for name, body in self._announcements().items():
            if wanted.intersection(body["keys"]):
                now = self._store.now() if now is None else now
                written = self._store.modified(name) or body["time"]
                if now - written < DELETION_SECONDS:
                    return True
        return False

    def _announcements(self) -> dict[str, dict[str, Any]]:
        names = [key for key in self._store.keys(PREFIX) if is_ours(key) and key != UNUSED]
        values = zip(names, self._store.read_many(names) if names else [], strict=True)
        return {
            name: canonical.decode_record(name, value, _HINT) for name, value in values if value
        }

    def unused_since(self) -> dict[str, float]:
        """{key: when it was first found to be unused}, where the store tells no ages.

        Raises:
            CorruptionError: the record is damaged.
        """
        value = self._store.read(UNUSED)
        return canonical.decode_record(UNUSED, value, _HINT)["since"] if value else {}

    def note_unused(self, since: Mapping[str, float]) -> None:
        """Takes down what `unused_since` gives."""
        if since:
            self._store.write(UNUSED, canonical.encode_record({"since": dict(since)}))
        else:
            self._store.delete([UNUSED])
