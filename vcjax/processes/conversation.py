"""The processes of a multi-controller JAX program, and what they tell each other.

They talk through the key-value store of JAX's coordination service, which process
0 hosts: plain messages with time limits, in no fixed order with the collectives of
the training step. So they may be sent in the background, where a collective of the
devices would wait for ever as soon as two processes launch it in different orders.
"""

import atexit
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import msgpack

from vcjax import errors
from vcjax.errors import ConflictError, ProcessError, ProcessTimeoutError, VcjaxError
from vcjax.hashing import digest_bytes
from vcjax.processes.jax_internals import coordination_client, is_too_late

POLL_SECONDS = 0.5
"""How long one request for a message may wait; then it is seen who is still there."""

_HINT = (
    "restart all processes; the branch is at its previous commit. A process that commits "
    "alone needs a repository of its own: Repository.open(url, local=True)"
)

LATE = 5
"""How many times longer than it may be silent a process that is alive may take to come."""

_numbers: defaultdict[str, "count[int]"] = defaultdict(count)
"""How many conversations this process has had about each URL."""

_open: defaultdict[str, set[int]] = defaultdict(set)
"""Those that this process has not ended. A commit in the background may outlast many others."""

_kept: defaultdict[str, set[int]] = defaultdict(set)
"""Those of process 0 whose messages are still there, as not all may have read them."""

_lock = threading.Lock()  # of these three


class Conversation:
    """What the processes say to each other about one thing that they do together.

    Every process sends numbered messages: those of process 0 are for all others,
    those of the others for process 0. While a conversation lasts, each process
    gives a sign of life from a thread, so that slow work is told from death. An
    exception that leaves the `with` block is sent in the place of the next
    message, and raised where that is received.

    Example: what process 0 knows, told to all::

        with Conversation(url, timeout_s) as talk:
            if talk.index != 0:
                return talk.receive(0)
            talk.send(answer)

    Args:
        url: what it is about, the same on all processes.
        timeout_s: how long another process may be silent, seconds; and a fifth of
            how long it may take to come to this conversation, if it is alive.
    """

    def __init__(self, url: str, timeout_s: float):
        import jax

        self.index = jax.process_index()
        self.count = jax.process_count()
        self._timeout = timeout_s
        self._client = coordination_client()
        self._url = url
        self._topic = f"vcjax/{digest_bytes(url.encode()).hex()[:16]}"
        with _lock:
            self._number = next(_numbers[url])
            _open[url].add(self._number)
            _kept[url].add(self._number)
            self._oldest = min(_open[url])
        self._name = f"{self._topic}/{self._number}"
        self._sent = 0
        self._received: defaultdict[int, int] = defaultdict(int)
        self._beats: dict[int, bytes] = {}
        self._heard: dict[int, float] = {}
        self._began = time.monotonic()
        self._late = LATE * timeout_s

    @property
    def others(self) -> range:
        """The processes besides 0."""
        return range(1, self.count)

    def __enter__(self) -> "Conversation":
        _pulse.start(self._client, self.index, self._timeout)
        with _service():
            self._client.key_value_set(f"{self._name}/here/{self.index}", str(self._oldest))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.fail(error)
        else:
            self._end()

    def _end(self) -> None:
        """Ends it for this process; process 0 deletes what all processes are done with."""
        with _lock:
            _open[self._url].discard(self._number)
        if self.index != 0:
            return
        with _service():
            here = self._client.key_value_dir_get(f"{self._name}/here/")
            if len(here) < self.count:  # who has not come may be anywhere
                return
            oldest = min(int(value) for _, value in here)
            with _lock:
                over = {number for number in _kept[self._url] if number < oldest}
                _kept[self._url] -= over
            for number in over:
                self._client.key_value_delete(f"{self._topic}/{number}")

    def fail(self, error: BaseException) -> None:
        """Ends it by sending an error in the place of the next message."""
        with _lock:
            _open[self._url].discard(self._number)
        try:
            self._post({"error": _described(error, self.index)})
        except ProcessError as lost:
            error.add_note(f"the other processes were not told: {lost.message}")

    def send(self, content: Any) -> None:
        """Sends the next message: MessagePack types.

        Raises:
            ProcessError: the coordination service is gone.
        """
        self._post({"content": content})

    def _post(self, message: Mapping[str, Any]) -> None:
        key = f"{self._name}/{self.index}/{self._sent}"
        self._sent += 1
        with _service():
            self._client.key_value_set_bytes(key, msgpack.packb(message))

    def receive(self, sender: int) -> Any:
        """The next message of a process.

        Raises:
            ProcessTimeoutError: it was silent for too long.
            ProcessError: it failed, or the coordination service is gone.
            VcjaxError: what process 0 found wrong, as it was raised there.
        """
        key = f"{self._name}/{sender}/{self._received[sender]}"
        wait_ms = max(1, int(1000 * min(POLL_SECONDS, self._timeout / 4)))
        while True:
            try:
                with _service():
                    packed = self._client.blocking_key_value_get_bytes(key, wait_ms)
                break
            except _NotYetError:
                self._check(sender)
        self._received[sender] += 1
        message = msgpack.unpackb(packed, strict_map_key=False)
        if "error" in message:
            raise _rebuilt(message["error"], sender)
        return message["content"]

    def meet(self) -> None:
        """Waits until all processes are here.

        To be called before a collective: one that a process never comes to cannot be
        called off, and the devices of the others are stuck in it.
        """
        if self.index != 0:
            self.send(None)
            self.receive(0)
            return
        for process in self.others:
            self.receive(process)
        self.send(None)

    def _check(self, sender: int) -> None:
        """Raises if a process has given no sign of life, or has not come, for too long."""
        now = time.monotonic()
        with _service():
            found = self._client.key_value_dir_get_bytes(_PULSES)
            here = self._client.key_value_dir_get(f"{self._name}/here/")
        for key, beat in found:
            process = int(key.rpartition("/")[2])
            if self._beats.get(process) != beat:
                self._beats[process] = beat
                self._heard[process] = now
        who = f"process {sender} of {self.count}"
        if now - self._heard.get(sender, now) > self._timeout:
            raise ProcessTimeoutError(f"{who} was not heard of for {self._timeout:g} s", hint=_HINT)
        has_come = any(key.endswith(f"/here/{sender}") for key, _ in here)
        if not has_come and now - self._began > self._late:
            raise ProcessTimeoutError(
                f"{who} has not come within {self._late:g} s to what the others do together",
                hint=_HINT,
            )


_PULSES = "vcjax/pulse/"


class _Pulse:
    """The signs of life of this process: a thread counts up under its key."""

    def __init__(self) -> None:
        self._interval = float("inf")
        self._lock = threading.Lock()
        self._over = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, client: Any, index: int, timeout_s: float) -> None:
        """Starts the thread, or sees to it that it is fast enough."""
        with self._lock:
            if timeout_s / 8 < self._interval:
                self._interval = timeout_s / 8
                self._wake.set()  # it may be waiting for longer than that
            if self._thread is None or not self._thread.is_alive():
                # A daemon: it must not keep a process alive whose other threads are done.
                self._thread = threading.Thread(
                    target=self._run, args=(client, index), name="vcjax-pulse", daemon=True
                )
                self._thread.start()
                atexit.register(self._stop)  # before JAX takes the client down

    def _stop(self) -> None:
        self._over = True
        self._wake.set()

    def _run(self, client: Any, index: int) -> None:
        number = 0
        while True:
            number += 1
            try:
                with _service():
                    client.key_value_set_bytes(
                        f"{_PULSES}{index}", b"%d" % number, allow_overwrite=True
                    )
            except ProcessError:
                return  # whoever waits for a message finds that out itself
            self._wake.wait(min(self._interval, 1.0) if number == 1 else self._interval)
            self._wake.clear()
            if self._over:
                return


_pulse = _Pulse()


class _NotYetError(Exception):
    """No such key within the time that one request waits."""


@contextmanager
def _service() -> Iterator[None]:
    """Turns errors of the coordination service into ours."""
    try:
        yield
    except RuntimeError as error:  # JaxRuntimeError, which there is no other way to tell apart
        if is_too_late(error):
            raise _NotYetError from error
        text = str(error)
        raise ProcessError(
            "JAX's coordination service cannot be reached; process 0, which hosts it, was "
            f"killed, most likely: {text.splitlines()[0] if text else error!r}",
            hint=_HINT,
        ) from error


def _described(error: BaseException, process: int) -> dict[str, Any]:
    """What is told about an error."""
    known = isinstance(error, VcjaxError)
    return {
        "kind": type(error).__name__,
        "process": process,
        "message": error.message if known else f"{type(error).__name__}: {error}",
        "hint": error.hint if known else None,
        "path": error.path if known else None,
        "paths": list(getattr(error, "paths", ())),
    }


def _rebuilt(told: Mapping[str, Any], sender: int) -> VcjaxError:
    """The error that another process has told of.

    Process 0 speaks for all: what it finds wrong is wrong for everybody and has the
    same type everywhere. What happens to another one is a `ProcessError`.
    """
    kind = getattr(errors, told["kind"], None)
    if sender == 0 and isinstance(kind, type) and issubclass(kind, VcjaxError):
        error = kind(told["message"], hint=told["hint"])
        error.path = told["path"]
        if isinstance(error, ConflictError):
            error.paths = tuple(told["paths"])
        return error
    return ProcessError(
        f"process {told['process']} failed: {told['message']}",
        hint=told["hint"] or "see what that process says",
        path=told["path"],
    )


def agree(
    url: str,
    timeout_s: float,
    find: Callable[[list[Any]], Any],
    bring: Callable[[], Any],
) -> Any:
    """What process 0 finds, on all processes.

    Args:
        find: called on process 0 alone, with what each process has brought; its
            result must be of MessagePack types.
        bring: called on every process first; also of MessagePack types.

    Raises:
        VcjaxError: whatever `find` raised.
        Exception: whatever `bring` raised here.
        ProcessError: `bring` failed on another process, or a process was killed or
            not heard of for `timeout_s` seconds.
    """
    with Conversation(url, timeout_s) as talk:
        brought = bring()
        if talk.index != 0:
            talk.send(brought)
            return talk.receive(0)
        found = find([brought, *map(talk.receive, talk.others)])
        talk.send(found)
        return found
