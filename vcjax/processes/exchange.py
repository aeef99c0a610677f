"""Sending parts of arrays from process to process by a collective of their devices.

Only what lies across the shards of several processes goes this way; digests and
messages take JAX's coordination service (`vcjax.processes.conversation`).

Collectives must be launched in the same order by every process, or all of them
wait for ever: each device runs what it is given in order. So an exchange belongs
on the thread that runs the training step, and never in the background.
"""

import functools
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vcjax.errors import ProcessError, ProcessTimeoutError
from vcjax.processes.ownership import Transfer

ROUND_BYTES = 32 * 1024 * 1024
"""Most bytes that a process sends at once; bounds the memory of both sides."""

LEAST_BYTES = 64 * 1024
"""Buffers are powers of two from here on, so that few programs are compiled."""

_AXIS = "process"


def exchange(
    transfers: Sequence[Transfer],
    sizes: Sequence[int],
    content: Callable[[int], np.ndarray],
    timeout_s: float,
) -> dict[int, np.ndarray]:
    """Carries out transfers between processes. Every process calls this with the same ones.

    A round sends from every process to the one `distance` further on, so that only
    distances that occur cost anything, and takes as long as its longest transfer.

    Args:
        transfers: all of them, in the same order everywhere.
        sizes: bytes of each.
        content: the bytes of a transfer from this process, by its number.
        timeout_s: how long one round may take, seconds.

    Returns:
        The bytes of the transfers to this process, by number.

    Raises:
        ProcessError: another process failed meanwhile.
        ProcessTimeoutError: a round took longer than `timeout_s`.
    """
    me, count = jax.process_index(), jax.process_count()
    by_distance: dict[int, list[int]] = defaultdict(list)
    for number, transfer in enumerate(transfers):
        by_distance[(transfer.target - transfer.source) % count].append(number)
    received: dict[int, np.ndarray] = {}
    for distance, numbers in sorted(by_distance.items()):
        lengths: dict[int, int] = defaultdict(int)
        for number in numbers:
            lengths[transfers[number].source] += sizes[number]
        longest = max(lengths.values())
        step = LEAST_BYTES
        while step < min(longest, ROUND_BYTES):
            step *= 2
        outgoing = [number for number in numbers if transfers[number].source == me]
        incoming = [number for number in numbers if transfers[number].target == me]
        outbox, inbox = _Stream(outgoing, sizes, content), _Stream(incoming, sizes, None)
        for _ in range(-(-longest // step)):
            buffer = np.zeros(step, np.uint8)
            outbox.copy(buffer, out=True)
            inbox.copy(_sent_on(buffer, distance, timeout_s), out=False)
        received.update(inbox.parts)
    return received


class _Stream:
    """Parts end to end, cut into buffers.

    Args:
        numbers: of the parts, in order.
        sizes: bytes of all parts, by number.
        content: makes the bytes of a part when its turn comes; None to receive them.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        sizes: Sequence[int],
        content: Callable[[int], np.ndarray] | None,
    ):
        self.parts: dict[int, np.ndarray] = {}
        self._left = list(numbers)
        self._sizes = sizes
        self._content = content
        self._at = 0

    def copy(self, buffer: np.ndarray, out: bool) -> None:
        """Copies the next bytes into the buffer (`out`) or from it."""
        used = 0
        while self._left and used < buffer.size:
            number = self._left[0]
            if number not in self.parts:
                self.parts[number] = self._made(number)
            part = self.parts[number]
            count = min(part.size - self._at, buffer.size - used)
            here, there = part[self._at : self._at + count], buffer[used : used + count]
            if out:
                there[:] = here
            else:
                here[:] = there
            used, self._at = used + count, self._at + count
            if self._at == part.size:
                self._left.pop(0)
                self._at = 0
                if out:
                    del self.parts[number]

    def _made(self, number: int) -> np.ndarray:
        if self._content is None:
            return np.empty(self._sizes[number], np.uint8)
        return self._content(number)


def _sent_on(buffer: np.ndarray, distance: int, timeout_s: float) -> np.ndarray:
    """What the process `distance` before this one has in its buffer.

    A collective whose other side is gone ends with an error, or never. It is
    waited for on a thread of its own, which is then left behind.
    """
    done: Future[np.ndarray] = Future()

    def run() -> None:
        try:
            done.set_result(_permute(buffer, distance))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="vcjax-exchange", daemon=True).start()
    try:
        return done.result(timeout_s)
    except TimeoutError as error:
        raise ProcessTimeoutError(
            f"another process has not sent its part of an array within {timeout_s:g} s",
            hint="restart all processes; the branch is at its previous commit",
        ) from error
    except (RuntimeError, ValueError) as error:  # gloo's failures are of either type
        raise ProcessError(
            f"sending parts of an array between processes failed: {error}",
            hint="a process was killed, most likely; restart all of them. "
            "The branch is at its previous commit",
        ) from error


def _permute(buffer: np.ndarray, distance: int) -> np.ndarray:
    devices = _one_device_each()
    mesh, send = _program(devices, distance)
    words = buffer.view(np.uint32)[None]
    mine = jax.device_put(words, devices[jax.process_index()])
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    shape = (len(devices), words.shape[1])
    together = jax.make_array_from_single_device_arrays(shape, sharding, [mine])
    result = send(together).addressable_shards[0].data
    return np.asarray(result).reshape(-1).view(np.uint8)


@functools.cache
def _one_device_each() -> tuple[Any, ...]:
    """A device of every process, by process."""
    first: dict[int, Any] = {}
    for device in sorted(jax.devices(), key=lambda device: device.id):
        first.setdefault(device.process_index, device)
    return tuple(first[process] for process in range(jax.process_count()))


@functools.cache
def _program(devices: tuple[Any, ...], distance: int) -> tuple[Mesh, Callable[..., Any]]:
    mesh, spec, count = Mesh(devices, _AXIS), PartitionSpec(_AXIS), len(devices)
    pairs = [(source, (source + distance) % count) for source in range(count)]

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def send(words: jax.Array) -> jax.Array:
        return jax.lax.ppermute(words, _AXIS, pairs)

    return mesh, send
