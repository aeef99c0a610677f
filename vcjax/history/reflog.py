"""The log of refs: every state that each of them has had, and what does not fit together."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from vcjax.errors import CorruptionError
from vcjax.history.keys import logged_name
from vcjax.history.ref import Ref, decode_ref, log_key, new_ref
from vcjax.history.refnames import KINDS, prefix_of, set_command
from vcjax.storage import Store


class RefLog:
    """What `log/` holds. Entries are written once and never changed."""

    def __init__(self, store: Store):
        self._store = store

    def names(self) -> list[str]:
        """Full names of all refs that have logged states, deleted refs included."""
        return list(dict.fromkeys(filter(None, map(logged_name, self._store.keys("log/")))))

    def keys(self, name: str) -> list[str]:
        """Where the states of a ref are, in order."""
        keys = self._store.keys(f"log/{name}@")
        return [key for key in keys if logged_name(key) == name]

    def states(self, name: str) -> list[Ref]:
        """All logged states of a ref in order, deletions included.

        Raises:
            CorruptionError: one is damaged, or that of another ref or number.
        """
        keys = self.keys(name)
        pairs = zip(keys, self._store.read_many(keys), strict=True)
        return [decode_ref(name, value, key) for key, value in pairs if value is not None]

    def last_number(self, name: str) -> int:
        """The highest sequence number in the log of a ref; 0 if it has none."""
        keys = self.keys(name)
        return int(keys[-1].rpartition("@")[2].removesuffix(".json")) if keys else 0

    def at(self, name: str, numbers: Iterable[int]) -> list[Ref | None]:
        """The states of some numbers; None for those that are not there."""
        keys = [log_key(name, number) for number in numbers]
        pairs = zip(keys, self._store.read_many(keys), strict=True)
        return [None if value is None else decode_ref(name, value, key) for key, value in pairs]

    def keep(self, ref: Ref) -> None:
        """Logs a state that is about to be replaced, or was just set.

        Writing it before the change, and with content that does not depend on
        who writes it, means that no crash and no race can lose a state. That it is
        written after the change as well shows that a ref was put back later.

        Raises:
            CorruptionError: the log has another state under this number.
        """
        [logged] = self.at(ref.name, [ref.sequence])
        if logged is None:
            self._store.write(ref.log_key, ref.encode())
        elif logged.nonce != ref.nonce:
            raise _put_back(ref, self.newest(ref.name) or logged)

    def keep_anyhow(self, ref: Ref) -> int:
        """Logs a state whatever the log has under its number; the last number then."""
        last = self.last_number(ref.name)
        [logged] = self.at(ref.name, [ref.sequence])
        if logged is not None and logged.nonce != ref.nonce:
            ref = replace(ref, sequence=last + 1)
        self._store.write(ref.log_key, ref.encode())
        return max(last, ref.sequence)

    def log_deletion(self, last: Ref, reason: str) -> None:
        """Logs that a ref is deleted after the state `last`.

        Never overwrites: if somebody has gone on from `last`, the log has that state.
        """
        gone = new_ref(last.name, "", last.sequence + 1, reason)
        absent = self._store.read_versioned(gone.log_key)
        if absent.value is None:
            self._store.compare_and_set(gone.log_key, gone.encode(), absent)

    def newest(self, name: str) -> Ref | None:
        """The last logged state of a ref that is no deletion."""
        return next((state for state in reversed(self.states(name)) if state.commit), None)

    def fault(self, ref: Ref) -> CorruptionError | None:
        """What speaks against a ref being in its newest state, at the cost of three reads.

        A state that was logged after this one, another one of its number, or a hole in
        the log just before it. Whoever meets it reads the ref again, since somebody may
        have changed it meanwhile.
        """
        numbers = [ref.sequence, ref.sequence + 1, max(1, ref.sequence - 1)]
        here, after, before = self.at(ref.name, numbers)
        if (after is not None and after.commit) or (here is not None and here.nonce != ref.nonce):
            return _put_back(ref, self.newest(ref.name) or ref)
        if before is None and any(key < ref.log_key for key in self.keys(ref.name)):
            number = ref.sequence - 1
            return CorruptionError(
                f"{log_key(ref.name, number)} is missing: somebody has deleted it",
                hint=f"{_command(ref, ref.commit)} goes on nevertheless; "
                "`vcjax fsck` names commits that nothing leads to",
            )
        return None

    def put_back(self, ref: Ref) -> CorruptionError | None:
        """What is to be said of a ref that its whole log has a newer or another state of."""
        newest = self.newest(ref.name)
        [here] = self.at(ref.name, [ref.sequence])
        if newest is not None and newest.sequence > ref.sequence:
            return _put_back(ref, newest)
        return _put_back(ref, here) if here is not None and here.nonce != ref.nonce else None

    def delete(self, states: Iterable[Ref]) -> None:
        """Deletes some states from the log."""
        self._store.delete(state.log_key for state in states)


def gaps(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The runs of numbers, first and last, that are missing between the lowest and the highest."""
    ordered = sorted(set(numbers))
    return [(low + 1, high - 1) for low, high in pairwise(ordered) if high > low + 1]


def _put_back(ref: Ref, newest: Ref) -> CorruptionError:
    """What is to be said of a ref whose log has other and newer states."""
    if newest.sequence == ref.sequence:
        return CorruptionError(
            f"{ref.name} is at {ref.commit[:8]}, and its log says of the same state, number "
            f"{ref.sequence}, that it was at {newest.commit[:8]}",
            hint=f"{_command(ref, newest.commit)} goes by the log, "
            f"{_command(ref, ref.commit)} by the ref",
        )
    return CorruptionError(
        f"{ref.name} was put back to its state {ref.sequence}, commit {ref.commit[:8]}; "
        f"its log goes on to state {newest.sequence}, commit {newest.commit[:8]}",
        hint=f"{_command(ref, newest.commit)} goes forward again, "
        f"{_command(ref, ref.commit)} stays here",
    )


def _command(ref: Ref, commit: str) -> str:
    if not prefix_of(ref.name):
        return f"`vcjax switch --detach {commit[:12]}`"
    return set_command(ref.short, commit[:12], KINDS[prefix_of(ref.name)])
