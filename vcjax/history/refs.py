"""Moving refs: only by compare-and-set, and with a log of every change."""

from collections.abc import Mapping

from vcjax.errors import CorruptionError, RefError
from vcjax.history.ref import Head, Ref, decode_detached, new_ref
from vcjax.history.reflog import RefReader
from vcjax.history.refnames import HEAD, HEADS, set_command
from vcjax.storage import Versioned


class Refs(RefReader):
    """The refs of a repository."""

    def set(
        self,
        name: str,
        commit: str,
        reason: str,
        expected: Ref | None,
        restores: int | None = None,
    ) -> Ref | None:
        """Points a ref to a commit, if it still is in the state `expected`.

        Args:
            expected: what `get` gave; None if the ref must not exist yet.

        Returns:
            The new state, or None when somebody else was faster.

        Raises:
            CorruptionError: the ref does not exist, and its log does not end in a
                deletion.
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
            sequence = self._following(name)
        else:
            sequence = current.sequence + 1
            self._keep(current)
        ref = new_ref(name, commit, sequence, reason, restores)
        if self._store.compare_and_set(name, ref.encode(), versioned):
            return ref
        # The response may be what was lost, not the race: our nonce tells.
        after = self.get(name)
        return ref if after is not None and after.nonce == ref.nonce else None

    def delete(self, name: str, expected: Ref) -> bool:
        """Deletes a ref, if it still is in the state `expected`; its log stays."""
        current, versioned = self._read(name)
        if current is None or current.nonce != expected.nonce:
            return False
        self._keep(current)
        self._log_deletion(current, "delete")
        return self._store.compare_and_set(name, None, versioned)

    def move(self, name: str, commit: str, reason: str, force: bool = False) -> Ref:
        """Makes a ref; with `force`, moves one, or makes one anew that was lost.

        Raises:
            RefError: it exists, and not `force`; or somebody was faster.
            CorruptionError: it was lost, and not `force`.
        """
        current = self.get(name)
        if current is not None and not force:
            raise RefError(
                f"{current.short!r} exists already, at {current.commit[:8]}",
                hint="choose another name, or move it with force=True (--force)",
            )
        if force and (last := self.lost(name)):
            self._log_deletion(last, "lost")
        return self._won(name, self.set(name, commit, reason, current))

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
        short, former = name.removeprefix(HEADS), self.log(name)
        hint = "make one with `vcjax commit FILE` or `repo.commit(tree, message)`"
        if former:
            hint = f"{set_command(short, former[0].commit)} makes it anew where it was"
        return RefError(f"branch {short!r} has no commit, so nothing to undo", hint=hint)

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
                    self._log_deletion(current, f"{reason}: to {head.branch}")
                data = head.encode()
            else:
                sequence = current.sequence + 1 if current else self._following(HEAD)
                data = new_ref(HEAD, head.commit or "", sequence, reason).encode()
            if self._store.compare_and_set(HEAD, data, versioned):
                return
            if self._store.read(HEAD) == data:
                return

    def _leaving_head(self, versioned: Versioned) -> Ref | None:
        """The newest state of a detached `HEAD` that is about to be left, logged; else None."""
        try:
            current = decode_detached(versioned.value)
        except CorruptionError:  # it is written anew; what its log leads to stays
            current = None
        if current is not None:
            self._keep(current)
            return current
        last = max(self._logged(HEAD), key=lambda state: state.sequence, default=None)
        return last if last is not None and last.commit else None

    def _following(self, name: str) -> int:
        """The sequence number for a ref that does not exist."""
        return max((state.sequence for state in self._logged(name)), default=0) + 1

    def forget(self, name: str, since: float) -> None:
        """Deletes from the log what was replaced before `since`."""
        states = self._states(name)
        pairs = zip(states[1:], states, strict=False)
        self._store.delete(old.log_key for old, new in pairs if new.time < since)

    def _keep(self, ref: Ref) -> None:
        """Logs a state that is about to be replaced.

        Writing it before the change, and with content that does not depend on
        who writes it, means that no crash and no race can lose a state.
        """
        self._store.write(ref.log_key, ref.encode())

    def _log_deletion(self, last: Ref, reason: str) -> None:
        """Logs that a ref is deleted after the state `last`.

        Never overwrites: if somebody has gone on from `last`, the log has that state.
        """
        gone = new_ref(last.name, "", last.sequence + 1, reason)
        absent = self._store.read_versioned(gone.log_key)
        if absent.value is None:
            self._store.compare_and_set(gone.log_key, gone.encode(), absent)

    def _refuse_nesting(self, name: str) -> None:
        """A folder cannot hold both `a` and `a/b`; neither may any other store."""
        self._store.remove_empty_folders(name)  # of refs below it that were deleted
        parts = name.split("/")
        parents = ["/".join(parts[:i]) for i in range(3, len(parts))]
        below = self._store.keys(f"{name}/")
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
            hint="it was lost or has expired; `vcjax branch --force NAME REV` moves a branch",
        )
    return states[sequence]
