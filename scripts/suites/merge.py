"""`--suite=merge`: merging language models, against mergekit.

Both run the same recipe on the same folders of safetensors into a new folder, each
in a fresh process, start-up included. The environment variable MERGEKIT_YAML names
mergekit's executable `mergekit-yaml`, in an environment of its own; without it only
vcjax is measured.

Memory is what a process allocated itself (anonymous), sampled every 20 ms: the
mapped pages of the inputs are the system's to drop. vcjax has its files on disk
(fsync) when it ends.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from suites.llama import write_models
from suites.measure import scratch

CONTENDERS = ("vcjax", "mergekit")


def _recipe(method: str, models: int, based: bool, **parameters: Any) -> dict[str, Any]:
    return {"method": method, "models": models, "based": based, "parameters": parameters}


RECIPES = {
    "linear, N = 4": _recipe("linear", 4, False, weight=1.0),
    "task arithmetic, N = 4": _recipe("task_arithmetic", 4, True, weight=0.4),
    "TIES, N = 2": _recipe("ties", 2, True, weight=1.0, density=0.2),
    "TIES, N = 4": _recipe("ties", 4, True, weight=1.0, density=0.2),
    "TIES, N = 8": _recipe("ties", 8, True, weight=1.0, density=0.2),
    "DARE-TIES, N = 4": _recipe("dare_ties", 4, True, weight=0.5, density=0.5),
    "SCE, N = 4": _recipe("sce", 4, True),
    "Model Stock, N = 4": _recipe("model_stock", 4, True),
    "multi-SLERP, N = 4": _recipe("multislerp", 4, False, weight=1.0),
    "Karcher, N = 4": _recipe("karcher", 4, False),
}

CASES = {
    name: f"{recipe['models']} models{' and their base' if recipe['based'] else ''}, "
    "491 MB of bfloat16 each"
    for name, recipe in RECIPES.items()
}

_FASTER = {
    "linear": 3,
    "task_arithmetic": 3,
    "ties": 6,
    "sce": 6,
    "dare_ties": 8,
    "model_stock": 4,
    "multislerp": 4,
    "karcher": 4,
}

TARGETS = {
    (name, figure): round(1 / _FASTER[recipe["method"]], 3)
    for name, recipe in RECIPES.items()
    for figure in ("wall", "cpu")
} | {(name, "peak"): 0.6 for name in RECIPES}

UNITS = {"wall": ("s", 1.0), "cpu": ("s", 1.0), "peak": ("MB", 1e-6)}


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All cases for one contender, in processes of their own."""
    if contender == "mergekit" and not os.environ.get("MERGEKIT_YAML"):
        return {}
    results = {}
    with scratch(parent) as folder:
        most = max(RECIPES[case]["models"] for case in CASES)
        models = write_models(folder, most)
        for case in CASES:
            path = folder / "recipe.yml"
            path.write_text(json.dumps(_written(RECIPES[case], models)))  # JSON is YAML too
            output = folder / "merged"
            os.sync()
            results[case] = measure(command(contender, path, output))
            subprocess.run(["rm", "-r", str(output)], check=True)
    return results


def _written(recipe: dict[str, Any], models: list[Path]) -> dict[str, Any]:
    chosen = models[1 : 1 + recipe["models"]]
    parameters = recipe["parameters"]
    fields: dict[str, Any] = {
        "merge_method": recipe["method"],
        "models": [{"model": str(path), "parameters": parameters} for path in chosen],
        "dtype": "bfloat16",
    }
    return fields | ({"base_model": str(models[0])} if recipe["based"] else {})


def command(contender: str, recipe: Path, output: Path) -> list[str]:
    """What runs a recipe."""
    if contender == "vcjax":
        words = [sys.executable, "-m", "vcjax.cli", "merge"]
        return [*words, f"--recipe={recipe}", f"--output={output}"]
    return [os.environ["MERGEKIT_YAML"], str(recipe), str(output)]


def environment(words: list[str]) -> dict[str, str]:
    """Of a command: mergekit must not see our packages."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths if words[0] == sys.executable else ""}


def measure(words: list[str]) -> dict[str, float]:
    """Runs a command; wall and CPU seconds, and the peak of its anonymous memory in bytes."""
    before, start = os.times(), time.perf_counter()
    with tempfile.TemporaryFile() as log:  # a pipe that nobody empties would stop the process
        process = subprocess.Popen(words, env=environment(words), stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - start
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"{words} failed:\n{log.read().decode()[-2000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"wall": wall, "cpu": cpu, "peak": float(peak)}


def _anonymous(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0  # the process has ended
