"""`--suite=steps`: does a step cost more, the more steps there are? Against Orbax's manager.

The tree is small, so that what is measured is the bookkeeping of a step.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from suites.measure import scratch
from suites.save import Orbax, Vcjax

CONTENDERS = ("vcjax", "orbax")

COUNTS = {"vcjax": (10, 100, 1_000, 10_000), "orbax": (10, 100, 1_000)}
"""Orbax, at 70 ms a step and more, would take long for the rest."""

SAMPLE = 50
"""Figures are of so many saves before the count is reached, or of all: medians; CPU the mean."""

CASES = {
    "10 steps": "4 KB in 2 leaves; every step is kept",
    "100 steps": "the same run, further on",
    "1000 steps": "the same",
    "10000 steps": "the same",
}

UNITS = {
    "save": ("ms", 1e3),
    "save, cpu": ("ms", 1e3),
    "latest_step": ("µs", 1e6),
    "open": ("ms", 1e3),
}

TARGETS: dict[tuple[str, str], float] = {}


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All counts for one contender, in this process."""
    make = {"vcjax": Vcjax, "orbax": Orbax}[contender]
    results: dict[str, dict[str, float]] = {}
    with scratch(parent) as folder:
        subject = make(folder / "steps")
        saves: list[float] = []
        asks: list[float] = []
        cpu: list[float] = []
        for step in range(max(COUNTS[contender])):
            tree = {"w": np.full(1000, step, np.float32), "step": np.asarray(step)}
            cpu.append(time.process_time())
            saves.append(_seconds(lambda step=step, tree=tree: subject.save(step, tree)))
            asks.append(_seconds(subject.manager.latest_step))
            if step + 1 in COUNTS[contender]:
                results[f"{step + 1} steps"] = {
                    "save": statistics.median(saves[-SAMPLE:]),
                    "save, cpu": _mean_step(cpu[-SAMPLE:]),
                    "latest_step": statistics.median(asks[-SAMPLE:]),
                    "open": _opening(make, folder / "steps"),
                }
        subject.close()
    return results


def _seconds(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _mean_step(readings: list[float]) -> float:
    """The mean distance of readings of a clock."""
    return (readings[-1] - readings[0]) / (len(readings) - 1)


def _opening(make: Any, folder: Path) -> float:
    """Seconds to open what is there and ask for the latest step."""

    def opened() -> None:
        subject = make(folder)
        subject.manager.latest_step()
        subject.close()

    return statistics.median(_seconds(opened) for _ in range(3))
