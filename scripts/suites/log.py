"""`--suite=log`: `vcjax log` over 1,000 commits, against importing TensorStore and doing nothing.

Both are whole processes, from start to exit.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import vcjax
from suites.measure import MoreThan, scratch

CONTENDERS = ("vcjax", "import tensorstore")

CASES = {
    "log": "`vcjax log` of 1,000 commits, all of them printed",
    "log -n 10": "the newest ten of them",
}

TARGETS = {("log", "wall"): MoreThan(0.5)}

COMMITS = 1000
REPEATS = 7


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All cases for one contender, each a process that is started several times."""
    with scratch(parent) as folder:
        repo = vcjax.Repository.init(folder / ".vcjax")
        for step in range(COMMITS):
            metrics = {"loss": 1 / (1 + step)}
            repo.commit({"w": np.full(4, step)}, f"step {step}", metrics=metrics)
        if contender == "import tensorstore":
            cost = _process(["-c", "import tensorstore"], folder)
            return dict.fromkeys(CASES, cost)
        program = "import sys; from vcjax.cli import main; sys.exit(main())"
        return {
            "log": _process(["-c", program, "log"], folder),
            "log -n 10": _process(["-c", program, "log", "-n", "10"], folder),
        }


def _process(arguments: list[str], folder: Path) -> dict[str, float]:
    """Wall time of the fastest of several processes; the first one compiles the modules."""
    paths = filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("VCJAX_REPO", None)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - start)
    return {"wall": min(times)}
