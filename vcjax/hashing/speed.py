"""Which backend digests arrays of a kind of device faster: measured, not assumed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from vcjax.hashing.device import digest_on_devices
from vcjax.hashing.host import digest_arrays
from vcjax.hashing.schedule import Device

PROBE_BYTES = 16 * 1024 * 1024
"""Bytes per measurement: one tile of the device kernel, four chunks for the threads."""


@dataclass(frozen=True)
class Speed:
    """How fast arrays of a kind of device are digested.

    Attributes:
        kind: of device, as JAX calls it, for example "cpu" or "NVIDIA H200".
        devices: how many of them this process has.
        backend: the faster one.
        device: GB/s of the JAX kernel on one device.
        host: GB/s of the SIMD package on all cores, transfer to the host included.
    """

    kind: str
    devices: int
    backend: Literal["device", "host"]
    device: float
    host: float


def faster_backend(device: Device) -> Literal["device", "host"]:
    """The backend for arrays on a device, measured once for each kind in a process."""
    return _measure(device).backend


_measured: dict[str, Speed] = {}


def _measure(device: Device) -> Speed:
    if device.device_kind not in _measured:
        array = _probe(device)
        kernel = _rate(lambda: digest_on_devices([("uint32", array)]))
        host = _rate(lambda: list(digest_arrays([("uint32", _fetched(array))])))
        count = sum(d.device_kind == device.device_kind for d in jax.local_devices())
        backend = "device" if kernel > host else "host"
        _measured[device.device_kind] = Speed(device.device_kind, count, backend, kernel, host)
    return _measured[device.device_kind]


def _probe(device: Device) -> UInt32[jax.Array, " words"]:
    words = np.random.default_rng(0).integers(0, 2**32, PROBE_BYTES // 4, np.uint32)
    return jax.device_put(words, device)


def _fetched(array: UInt32[jax.Array, " words"]) -> UInt32[np.ndarray, " words"]:
    # An array keeps the copy that it once made for the host; a new one has none yet.
    return np.asarray(jax.block_until_ready(jnp.bitwise_xor(array, np.uint32(1))))


def _rate(action: Callable[[], object]) -> float:
    """GB/s of digesting the probe, the best of three after one to warm up."""
    action()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return PROBE_BYTES / min(times) / 1e9


def speed_report() -> list[Speed]:
    """The speed of both backends for every kind of device that this process has.

    Takes a few seconds where the kernel is yet to be compiled.
    """
    kinds = {device.device_kind: device for device in jax.local_devices()}
    return [_measure(device) for device in kinds.values()]
