"""The refs of a repository: moved only by compare-and-set, with a log of every change."""

import difflib
import math
from collections.abc import Mapping
from contextlib import suppress

from vcjax.errors import CorruptionError, RefError, StorageError
from vcjax.history.keys import is_ref
from vcjax.history.ref import (
    ForeignRecordError,
    Head,
    Ref,
    decode_detached,
    decode_head,
    decode_ref,
    new_ref,
)
from vcjax.history.reflog import RefLog, gaps
from vcjax.history.refnames import (
    ALIASES,
    HEAD,
    HEADS,
    KINDS,
    prefix_of,
    set_command,
    short_name,
)
from vcjax.storage import Store, Versioned


class Refs:
    """Branches, tags, aliases and `HEAD`: their present states, and the log of former ones."""

    def __init__(self, store: Store):
        self._store = store
        self._log = RefLog(store)

    def get(self, name: str) -> Ref | None:
        """The present state of a ref, by its full name; "HEAD" is one while detached."""
        return self._read(name)[0]

    def _read(self, name: str) -> tuple[Ref | None, Versioned]:
        versioned = self._store.read_versioned(name)
        if name == HEAD:
            return decode_detached(versioned.value), versioned
        if versioned.value is None:
            return None, versioned
        try:
            return decode_ref(name, versioned.value), versioned
        except ForeignRecordError as error:
            newest = self._log.newest(name)
            if newest is None:
                raise
            command = set_command(newest.short, newest.commit[:12], KINDS[prefix_of(name)])
            hint = f"{command} takes it to the newest state that its log has"
            raise ForeignRecordError(error.key, error.owner, hint) from error

    def under(self, prefix: str = "refs/") -> dict[str, Ref]:
        """{full name: ref} of all refs below a prefix; copies made by other programs are none."""
        names = list(filter(is_ref, self._store.keys(prefix)))
        found = {}
        for name, value in zip(names, self._store.read_many(names), strict=True):
            try:
                if value is not None:
                    found[name] = decode_ref(name, value)
            except ForeignRecordError as error:
                if not error.is_copy:
                    raise
        return found

    def names(self) -> list[str]:
        """Full names of all refs and aliases, without reading them."""
        return list(filter(is_ref, self._store.keys("refs/") + self._store.keys(ALIASES)))

    def logged_names(self) -> list[str]:
        """Full names of all refs that have logged states, deleted ones included."""
        return self._log.names()

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
        current, states = self.all_states(name)
        if current is not None:  # a change that was not carried through may have logged more
            states = [state for state in states if state.sequence <= current.sequence]
        return states

    def all_states(self, name: str) -> tuple[Ref | None, list[Ref]]:
        """The present state of a ref, and all that it or its log has, newest first.

        The ref is read first: whatever it has been before is logged by then.
        """
        current = self.get(name)
        states = {state.sequence: state for state in self._log.states(name)}
        if current is not None:
            states[current.sequence] = current
        return current, [states[number] for number in sorted(states, reverse=True)]

    def gaps(self, name: str) -> list[tuple[int, int]]:
        """Runs of sequence numbers, first and last, that the log of a ref should have."""
        return gaps(state.sequence for state in self._states(name))

    def fault(self, name: str) -> CorruptionError | None:
        """What speaks against a ref being in its newest state: its log has a newer one."""
        while True:
            current = self.get(name)
            fault = None if current is None else self._log.put_back(current)
            if fault is None or self.get(name) == current:
                return fault

    def former(self, name: str, since: float) -> frozenset[str]:
        """Commits that a ref pointed to at some time after `since`, or points to now.

        All that the log knows count, so those too that a ref was put back from.
        """
        current, states = self.all_states(name)
        replaced = [math.inf, *(state.time for state in states)]
        pairs = zip(states, replaced, strict=False)
        kept = {state.commit for state, end in pairs if state.commit and end >= since}
        return frozenset(kept | ({current.commit} if current else set()))

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

    def set(
        self,
        name: str,
        commit: str,
        reason: str,
        expected: Ref | None,
        restores: int | None = None,
        anyhow: bool = False,
    ) -> Ref | None:
        """Points a ref to a commit, if it still is in the state `expected`.

        Args:
            expected: what `get` gave; None if the ref must not exist yet.
            restores: the sequence number that this goes back to.
            anyhow: go on although the ref does not fit to its log.

        Returns:
            The new state, or None when somebody else was faster.

        Raises:
            CorruptionError: the ref does not exist, and its log does not end in a
                deletion; or it was put back to an older state, or its log has a hole.
            RefError: no ref may have that name beside those that there are; or it
                is "HEAD" and on a branch.
        """
        current, versioned = self._read(name)
        if (current and current.nonce) != (expected and expected.nonce):
            return None
        if current is None:
            if name == HEAD:  # `set_head` alone takes it from a branch
                raise RefError("HEAD is on a branch meanwhile", hint="try again")
            self.refuse_lost(name)
            self._refuse_nesting(name)
            sequence = self._log.last_number(name) + 1
        elif anyhow:
            sequence = self._log.keep_anyhow(current) + 1
        else:
            if not self._fits(current):
                return None
            sequence = current.sequence + 1
            self._log.keep(current)
        ref = new_ref(name, commit, sequence, reason, restores)
        return ref if self._replace(ref, versioned) else None

    def _replace(self, ref: Ref, versioned: Versioned) -> bool:
        """Sets a ref to a state by compare-and-set, and logs that it was there."""
        if not self._store.compare_and_set(ref.name, ref.encode(), versioned):
            # The response may be what was lost, not the race: our nonce tells.
            after = self.get(ref.name)
            if after is None or after.nonce != ref.nonce:
                return False
        with suppress(StorageError):  # it is set, and whoever replaces it logs it first
            self._log.keep(ref)
        return True

    def _fits(self, current: Ref) -> bool:
        """Whether a ref still is in a state; raises if that does not fit to its log."""
        fault = self._log.fault(current)
        if fault is None:
            return True
        if self.get(current.name) == current:  # it was not somebody who changed it meanwhile
            raise fault
        return False

    def delete(self, name: str, expected: Ref) -> bool:
        """Deletes a ref, if it still is in the state `expected`; its log stays."""
        current, versioned = self._read(name)
        if current is None or current.nonce != expected.nonce:
            return False
        if not self._fits(current):
            return False
        self._log.keep(current)
        self._log.log_deletion(current, "delete")
        return self._store.compare_and_set(name, None, versioned)

    def move(self, name: str, commit: str, reason: str, force: bool = False) -> Ref:
        """Makes a ref; with `force`, moves one, or makes one anew that was lost.

        Raises:
            RefError: it exists, and not `force`; or somebody was faster.
            CorruptionError: it was lost, and not `force`.
        """
        try:
            current = self.get(name)
        except ForeignRecordError:
            if not force:
                raise
            return self._overwrite(name, commit, reason)
        if current is not None and not force:
            message = f"{current.short!r} exists already, at {current.commit[:8]}"
            other = "choose another name, or move it with"
            raise RefError(message, hint=f"{other} force=True", shell_hint=f"{other} --force")
        if force and (last := self.lost(name)):
            self._log.log_deletion(last, "lost")
        return self._won(name, self.set(name, commit, reason, current, anyhow=force))

    def _overwrite(self, name: str, commit: str, reason: str) -> Ref:
        """Sets a ref that holds another one's record to a state after all that its log has."""
        versioned = self._store.read_versioned(name)
        ref = new_ref(name, commit, self._log.last_number(name) + 1, reason)
        return self._won(name, ref if self._replace(ref, versioned) else None)

    def remove(self, name: str) -> None:
        """Deletes a ref; its log stays.

        Raises:
            RefError: there is none, or somebody was faster.
        """
        if not self.delete(name, self.require(name)):
            self._won(name, None)

    def undo(self, name: str) -> Ref | None:
        """Takes a ref back to its state before the last change; again, further back.

        Returns:
            The new state; None if there was none before and the ref is gone.

        Raises:
            RefError: there is no such ref, its log does not go back that far, or
                somebody was faster.
        """
        current = self.get(name)
        if current is None:
            raise self._gone(name)
        states = {state.sequence: state for state in self._states(name)}
        undone = current
        while undone.restores is not None:
            undone = _logged(states, name, undone.restores)
        if undone.sequence > 1:
            before = _logged(states, name, undone.sequence - 1)
            if before.commit:
                reason = f"undo: {undone.reason}"
                return self._won(
                    name, self.set(name, before.commit, reason, current, before.sequence)
                )
        if not self.delete(name, current):
            self._won(name, None)
        return None

    def _gone(self, name: str) -> RefError:
        """What is to be said of a ref that is not there."""
        self.refuse_lost(name)
        short = name.removeprefix(HEADS)
        message = f"branch {short!r} has no commit, so nothing to undo"
        if former := self.log(name):
            again = set_command(short, former[0].commit)
            return RefError(message, hint=f"{again} makes it anew where it was")
        hints = "`repo.commit(tree, message)` makes one", "`vcjax commit FILE` makes one"
        return RefError(message, hint=hints[0], shell_hint=hints[1])

    @staticmethod
    def _won(name: str, ref: Ref | None) -> Ref:
        if ref is None:
            raise RefError(f"somebody else changed {name} meanwhile", hint="try again")
        return ref

    def set_head(self, head: Head, reason: str = "switch") -> None:
        """Points `HEAD` to a branch or commit, whatever it was; the last writer wins.

        The commit of a detached `HEAD` is logged before it is left. A commit moves a
        detached `HEAD` by `set`, which loses to a switch made meanwhile.
        """
        while True:
            versioned = self._store.read_versioned(HEAD)
            current = self._leaving_head(versioned)
            if head.branch is not None:
                if current is not None:
                    self._log.log_deletion(current, f"{reason}: to {head.branch}")
                data = head.encode()
                if self._store.compare_and_set(HEAD, data, versioned):
                    return
                if self._store.read(HEAD) == data:
                    return
            else:
                sequence = self._log.last_number(HEAD) + 1
                if self._replace(new_ref(HEAD, head.commit or "", sequence, reason), versioned):
                    return

    def _leaving_head(self, versioned: Versioned) -> Ref | None:
        """The newest state of a detached `HEAD` that is about to be left, logged; else None."""
        try:
            current = decode_detached(versioned.value)
        except CorruptionError:  # it is written anew; what its log leads to stays
            current = None
        if current is not None:
            self._log.keep_anyhow(current)
        last = max(self._log.states(HEAD), key=lambda state: state.sequence, default=None)
        return last if last is not None and last.commit else None

    def forget(self, name: str, since: float) -> None:
        """Deletes from the log what was replaced before `since`."""
        _, states = self.all_states(name)
        pairs = zip(states[1:], states, strict=False)
        self._log.delete([old for old, new in pairs if new.time < since])

    def _refuse_nesting(self, name: str) -> None:
        """A folder cannot hold both `a` and `a/b`; neither may any other store."""
        self._store.remove_empty_folders(name)  # of refs below it that were deleted
        parts = name.split("/")
        parents = ["/".join(parts[:i]) for i in range(3, len(parts))]
        below = list(filter(is_ref, self._store.keys(f"{name}/")))
        clash = next((parent for parent in parents if self._store.exists(parent)), None)
        if clash or below:
            raise RefError(
                f"{name!r} cannot exist beside {clash or below[0]!r}",
                hint="choose a name that is no part of another one's path",
            )


def _logged(states: Mapping[int, Ref], name: str, sequence: int) -> Ref:
    """A state of a ref that has to be in its log to undo further."""
    if sequence not in states:
        raise RefError(
            f"the log of {name} lacks its state {sequence}, so it cannot be undone further",
            hint="`repo.branch(name, at=…, force=True)` moves a branch, whatever its log says",
            shell_hint="`vcjax branch --force NAME REV` moves a branch, whatever its log says",
        )
    return states[sequence]
