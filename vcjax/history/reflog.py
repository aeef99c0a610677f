"""What refs are and have been: their present states, and the log of all former ones."""

import difflib
import math

from vcjax.errors import CorruptionError, RefError
from vcjax.history.ref import Head, Ref, decode_detached, decode_head, decode_ref
from vcjax.history.refnames import ALIASES, HEAD, KINDS, prefix_of, set_command, short_name
from vcjax.storage import Store, Versioned


class RefReader:
    """The half of `Refs` that changes nothing."""

    def __init__(self, store: Store):
        self._store = store

    def get(self, name: str) -> Ref | None:
        """The present state of a ref, by its full name; "HEAD" is one while detached."""
        return self._read(name)[0]

    def _read(self, name: str) -> tuple[Ref | None, Versioned]:
        versioned = self._store.read_versioned(name)
        if name == HEAD:
            return decode_detached(versioned.value), versioned
        ref = None if versioned.value is None else decode_ref(name, versioned.value)
        return ref, versioned

    def under(self, prefix: str = "refs/") -> dict[str, Ref]:
        """{full name: ref} of all refs below a prefix."""
        names = self._store.keys(prefix)
        values = self._store.read_many(names)
        pairs = zip(names, values, strict=True)
        return {name: decode_ref(name, value) for name, value in pairs if value is not None}

    def names(self) -> list[str]:
        """Full names of all refs and aliases, without reading them."""
        return self._store.keys("refs/") + self._store.keys(ALIASES)

    def logged_names(self) -> list[str]:
        """Full names of all refs that have had earlier states, deleted ones included."""
        keys = self._store.keys("log/")
        return list(dict.fromkeys(key[len("log/") :].rpartition("@")[0] for key in keys))

    def require(self, name: str) -> Ref:
        """The present state of a ref that must exist.

        Raises:
            RefError: it does not; the hint names similar ones.
        """
        ref = self.get(name)
        if ref is not None:
            return ref
        prefix = prefix_of(name)
        short = short_name(name)
        known = [other.short for other in self.under(prefix).values()]
        close = difflib.get_close_matches(short, known, n=3, cutoff=0.5)
        raise RefError(
            f"there is no {KINDS[prefix]} {short!r}",
            hint=f"did you mean {' or '.join(close)}?"
            if close
            else f"there are: {', '.join(known) or 'none'}",
        )

    def head(self) -> Head:
        """What `HEAD` points to.

        Raises:
            CorruptionError: it is missing or garbled.
        """
        return decode_head(self._store.read(HEAD))

    def log(self, name: str) -> list[Ref]:
        """All states that a ref has had, newest first, the present one included."""
        return [state for state in self._states(name) if state.commit]

    def _states(self, name: str) -> list[Ref]:
        """`log`, and among it a state without a commit for every deletion."""
        states = self._logged(name)
        current = self.get(name)
        if current is not None:  # a change that was not carried through may have logged more
            states = [state for state in states if state.sequence < current.sequence]
            states.append(current)
        return sorted(states, key=lambda state: -state.sequence)

    def _logged(self, name: str) -> list[Ref]:
        """What `log/` has of a ref, in order, whether or not the ref itself is there."""
        keys = self._store.keys(f"log/{name}@")
        pairs = zip(keys, self._store.read_many(keys), strict=True)
        return [decode_ref(name, value, key) for key, value in pairs if value is not None]

    def gaps(self, name: str) -> list[int]:
        """Sequence numbers that the log of a ref should have and has not."""
        found = {state.sequence for state in self._states(name)}
        return sorted(set(range(min(found), max(found))) - found) if found else []

    def former(self, name: str, since: float) -> frozenset[str]:
        """Commits that a ref pointed to at some time after `since`, or points to now."""
        states = self._states(name)
        replaced = [math.inf, *(state.time for state in states)]
        pairs = zip(states, replaced, strict=False)
        return frozenset(state.commit for state, end in pairs if state.commit and end >= since)

    def lost(self, name: str) -> Ref | None:
        """The newest logged state of a ref that is gone without having been deleted.

        None if the ref exists, was deleted, or has no log: its first state is not
        logged before it is replaced, so the loss of that one cannot be told from a
        ref that never was.
        """
        last: Ref | None = None
        while True:
            if self.get(name) is not None:
                return None
            newest = next(iter(self._states(name)), None)
            if newest is None or not newest.commit:
                return None
            if newest == last:  # twice, lest it was made, moved and deleted meanwhile
                return newest
            last = newest

    def refuse_lost(self, name: str) -> None:
        """Raises CorruptionError if `lost` finds that a ref was lost."""
        state = self.lost(name)
        if state is None:
            return
        command = set_command(state.short, state.commit, KINDS[prefix_of(name)])
        raise CorruptionError(
            f"{name} is missing; its log ends at state {state.sequence}",
            hint=f"{command} makes it anew there; `vcjax fsck` names later commits, if any",
        )
