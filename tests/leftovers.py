"""What a test may leave behind in its process: other processes, and threads at work."""

import concurrent.futures.thread
import sys
import threading
import time
from pathlib import Path
from types import FrameType

ENDLESS = ("zarr_io",)
"""Threads that other libraries start once and keep, by how their names begin."""

GRACE = 30.0
"""Seconds in which what is about to end has ended, on however busy a machine."""


def child_processes() -> set[int]:
    """What this process has started and not waited for; nothing is known but on Linux."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(map(int, path.read_text().split()))
        except OSError:  # the thread has ended meanwhile
            continue
    return found


def busy_threads() -> set[threading.Thread]:
    """Threads but for those of pools that wait for work: they end with their pool."""
    frames = sys._current_frames()
    return {
        thread
        for thread in threading.enumerate()
        if not thread.name.startswith(ENDLESS) and not _is_idle(frames.get(thread.ident or 0))
    }


def _is_idle(frame: FrameType | None) -> bool:
    """Whether a thread is a pool's and at none of its tasks, or at its end."""
    if frame is None:
        return True
    code = frame.f_code
    return (code.co_filename, code.co_name) == (concurrent.futures.thread.__file__, "_worker")


class Leftovers:
    """What is there now, to be compared with what is there later."""

    def __init__(self) -> None:
        self._threads, self._processes = busy_threads(), child_processes()

    def found(self) -> list[str]:
        """What has come since and stays, in words."""
        threads = busy_threads() - self._threads
        deadline = time.monotonic() + GRACE
        while threads and time.monotonic() < deadline:
            next(iter(threads)).join(0.01)  # a pool's thread is idle soon, and does not end
            threads &= busy_threads()
        processes = child_processes() - self._processes
        words = [f"the thread {thread.name!r}" for thread in threads]
        return words + [f"the process {number}" for number in sorted(processes)]
