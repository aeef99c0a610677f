"""`vcjax doctor`: whether this machine and the repository's place are fit for vcjax."""

import importlib
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from vcjax import formats, hashing, storage
from vcjax._version import __version__
from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.errors import RepositoryNotFoundError, VcjaxError
from vcjax.report import Column, Span, format_bytes, table

if TYPE_CHECKING:
    from vcjax.storage import Store

PACKAGES = ("jax", "jaxlib", "flax", "tensorstore", "numpy", "orbax-checkpoint", "blake3")
PROBE_BYTES = 32 * 1024 * 1024
"""Enough to measure a disk by, little enough to be done in a second."""

SLOW_HASHING = 0.5
"""GB/s; BLAKE3 with SIMD does 1 and more on one core."""

SLOW_WRITES = 50e6
"""Bytes per second with fsync; below this, saving waits for the disk."""

SLOW_FSYNC = 0.05
"""Seconds for one small durable write; a commit makes about five."""

Status = Literal["ok", "warn", "fail"]
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ok, warn (slow or limited) or fail (vcjax will not work).
        detail: what was found.
        hint: what to do about it; None if ok.
    """

    name: str
    status: Status
    detail: str
    hint: str | None = None


def versions() -> Iterator[Finding]:
    """vcjax, Python and the packages that it stands on."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("vcjax", "ok", f"{__version__} on Python {python}")
    for package in PACKAGES:
        try:
            yield Finding(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            hint = f"pip install {package}"
            yield Finding(package, "fail", "is not installed", hint)


def devices() -> Iterator[Finding]:
    """The devices that JAX sees."""
    jax = importlib.import_module("jax")
    try:
        found = jax.devices()
    except RuntimeError as error:
        yield Finding("devices", "fail", str(error), "JAX_PLATFORMS=cpu goes without accelerators")
        return
    kinds = [device.device_kind for device in found]
    counts = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    yield Finding("devices", "ok", f"{jax.default_backend()}: {counts}")


def hashing_speed() -> Iterator[Finding]:
    """Where leaves of each kind of device are digested, and how fast."""
    try:
        measured = hashing.speed_report()
    except RuntimeError:  # `devices` says what is wrong with them
        return
    for speed in measured:
        on_device = speed.backend == "device"
        rate = speed.device * speed.devices if on_device else speed.host
        slow = rate < SLOW_HASHING
        backend = "BLAKE3 in JAX on the device" if on_device else "the blake3 package on the host"
        yield Finding(
            f"hashing {speed.kind}",
            "warn" if slow else "ok",
            f"{backend}, {rate:.2f} GB/s "
            f"(measured: one device {speed.device:.2f}, host {speed.host:.2f})",
            "blake3 may lack SIMD here, or the cores are busy" if slow else None,
        )


def place(session: Session) -> Iterator[Finding]:
    """The repository's place, or this folder's file system: speed, durability, compare-and-set."""
    try:
        store = session.repo.store
        yield Finding("repository", "ok", store.url)
        yield from probe(store)
    except RepositoryNotFoundError as error:
        yield Finding("repository", "warn", error.message, error.shell_hint)
        with tempfile.TemporaryDirectory(prefix=".vcjax-doctor-", dir=".") as folder:
            yield from probe(storage.open_store(folder))
    except VcjaxError as error:
        yield Finding("repository", "fail", error.message, error.shell_hint)


def probe(store: "Store") -> Iterator[Finding]:
    """Writes to a store below a key of its own, and removes that again."""
    folder = f"probe/{secrets.token_hex(8)}"
    try:
        yield _writes(store, folder)
        yield _compare_and_set(store, f"{folder}/ref")
    except VcjaxError as error:
        yield Finding("store", "fail", error.message, error.shell_hint)
        return
    finally:
        store.delete(store.keys(f"{folder}/"))
        store.remove_empty_folders("probe")


def _writes(store: "Store", folder: str) -> Finding:
    blocks = [(f"{folder}/{i}", secrets.token_bytes(PROBE_BYTES // 8)) for i in range(8)]

    def durably(items: list[tuple[str, bytes]]) -> None:
        store.write_many(items)
        store.sync()

    small = min(_seconds(lambda i=i: durably([(f"{folder}/s{i}", b"x")])) for i in range(3))
    speed = PROBE_BYTES / _seconds(lambda: durably(blocks))
    slow = speed < SLOW_WRITES or small > SLOW_FSYNC
    return Finding(
        "store",
        "warn" if slow else "ok",
        f"writes {format_bytes(speed)}/s durably, one small object in {1000 * small:.1f} ms",
        "put the repository on a local SSD, and push to this place" if slow else None,
    )


def _compare_and_set(store: "Store", key: str) -> Finding:
    absent = store.read_versioned(key)
    created = store.compare_and_set(key, b"1", absent)
    present = store.read_versioned(key)
    replaced = store.compare_and_set(key, b"2", present)
    stale = [store.compare_and_set(key, b"3", old) for old in (absent, present)]
    if created and replaced and not any(stale) and store.read(key) == b"2":
        lock = f" (lock: {store.lock})" if store.lock else ""
        if store.lock == "file":
            hint = "`flock` does not work here: mount it alike on all machines that write to it"
            return Finding("compare-and-set", "warn", "works by a lock file", hint)
        return Finding("compare-and-set", "ok", f"works; several writers are safe{lock}")
    return Finding(
        "compare-and-set",
        "fail",
        "a stale write was accepted" if any(stale) else "a good write was refused",
        "keep the repository elsewhere: here writers would overwrite each other's commits",
    )


def file_formats() -> Iterator[Finding]:
    """The checkpoint formats that are installed."""
    found = formats.formats()
    if not found:
        yield Finding("formats", "fail", "none", "install vcjax with pip, so that it is registered")
        return
    for name, form in found.items():
        yield Finding(f"format {name}", "ok", " ".join(form.suffixes))
    for entry in metadata.entry_points(group="vcjax.formats"):
        if entry.name not in found:
            hint = "update or uninstall the package that provides it"
            yield Finding(f"format {entry.name}", "fail", f"{entry.value} cannot be loaded", hint)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return max(time.perf_counter() - start, 1e-9)


def run(session: Session) -> int:
    """Looks at everything; exit code 1 if something failed."""
    with session.out.status("examining"):
        found = [*versions(), *devices(), *hashing_speed(), *place(session), *file_formats()]
    rows: list[list[str | Span]] = []
    for finding in found:
        status = Span(finding.status, STYLES[finding.status])
        rows.append([status, finding.name, finding.detail])
        if finding.hint:
            rows.append(["", "", Span(f"hint: {finding.hint}", "cyan")])
    failed = any(finding.status == "fail" for finding in found)
    session.out.report(
        "doctor",
        {"ok": not failed, "findings": [asdict(finding) for finding in found]},
        table([Column(), Column(), Column()], rows),
    )
    return 1 if failed else 0


COMMAND = Command(
    name="doctor",
    summary="Check versions, devices, hashing and the repository's place",
    usage="",
    run=run,
    details="Writes some megabytes to the repository's place and removes them again. The exit "
    "code is 1 if something is wrong.",
)
