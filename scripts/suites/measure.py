"""Measuring one operation: wall time, CPU time, peak memory, bytes on disk."""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class Measurement:
    """What one operation cost.

    Attributes:
        wall: seconds by the clock.
        cpu: seconds of all threads, user and system.
        peak: bytes of memory above what was held before, at the worst moment.
        disk: bytes that files below the watched folder grew by.
    """

    wall: float
    cpu: float
    peak: float
    disk: float

    def to_dict(self) -> dict[str, float]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class MoreThan:
    """A target that is a difference to the peer rather than a ratio.

    Attributes:
        most: how much more than the peer's the figure may be, in its unit.
    """

    most: float


def disk_bytes(folder: Path) -> int:
    """Apparent size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(action: Callable[[], Any], folder: Path) -> tuple[Measurement, Any]:
    """Runs an action and says what it cost; gives its result back too.

    The peak is the kernel's own high-water mark, reset before the action.
    """
    before_disk = disk_bytes(folder)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    cpu, wall = _cpu(), time.perf_counter()
    result = action()
    wall, cpu = time.perf_counter() - wall, _cpu() - cpu
    peak = _memory("VmHWM") - before
    return Measurement(wall, cpu, float(peak), float(disk_bytes(folder) - before_disk)), result


@contextmanager
def scratch(parent: str) -> Iterator[Path]:
    """An empty folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vcjax-bench-", dir=parent or None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.sync()
