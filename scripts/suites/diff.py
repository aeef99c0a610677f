"""`--suite=diff`: full statistics of two models, against NumPy reading them for one norm a leaf.

The contender *numpy* loads both safetensors files (`safetensors.numpy.load_file`) and takes
`np.linalg.norm` of every leaf; *mapped* takes the norms of the mapped files without loading
them, about the least that anything that looks at every byte can do. Neither computes a
difference. vcjax computes every figure of `leaf_statistics` of every pair: of the same files, as
`vcjax diff FILE FILE` does, digests included, and of two commits that hold the same leaves,
each chunk verified against its digest. Everything is in the page cache; what is compiled has
been compiled.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from suites.measure import Measurement, measured, scratch
from suites.trees import gpt2_small
from vcjax import diffing, formats, tree
from vcjax.cli.file_content import open_file

CONTENDERS = ("vcjax", "numpy", "mapped")

CASES = {
    "files": "two safetensors files of 498 MB and 148 leaves, all of which changed",
    "commits": "two commits of the same; NumPy still reads the files",
    "one leaf": "two commits of 150 leaves of 3.3 MB, one of which changed",
}

TARGETS = {("files", "wall"): 1.3, ("commits", "wall"): 1.3}


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All cases for one contender, in this process."""
    with scratch(parent) as folder:
        paths = _write(folder)
        if contender != "vcjax":
            read = load_file if contender == "numpy" else _mapped
            _norms(read, folder / "small.safetensors")  # imports are not what is measured
            outcome = measured(lambda: [_norms(read, path) for path in paths], folder)[0]
            return {name: outcome.to_dict() for name in ("files", "commits")}
        return {name: value.to_dict() for name, value in _vcjax(folder, paths).items()}


def _write(folder: Path) -> list[Path]:
    """Two models as files, read once so that they are in the page cache."""
    rng = np.random.default_rng(1)
    old = _flat(jax.tree.map(np.asarray, gpt2_small()))
    step = {
        name: leaf + np.float32(1e-4) * rng.standard_normal(leaf.shape, np.float32)
        for name, leaf in old.items()
    }
    formats.write(folder / "small.safetensors", {"w": np.zeros(9)})
    paths = []
    for name, model in (("old", old), ("new", step)):
        paths.append(folder / f"{name}.safetensors")
        formats.write(paths[-1], model)
        paths[-1].read_bytes()
    return paths


def _flat(model: Any) -> dict[str, np.ndarray]:
    leaves = tree.leaf_dict(tree.flatten(model))
    return {path.replace("/", "."): np.asarray(leaf.data) for path, leaf in leaves.items()}


def _mapped(path: Path) -> dict[str, np.ndarray]:
    return formats.read(path).tree


def _norms(read: Callable[[Path], dict[str, np.ndarray]], path: Path) -> dict[str, float]:
    return {name: float(np.linalg.norm(leaf)) for name, leaf in read(path).items()}


def _vcjax(folder: Path, paths: list[Path]) -> dict[str, Measurement]:
    import vcjax

    small = [{"w": np.full(70_000, number, np.float32)} for number in (1, 2)]
    vcjax.diff(small[0], small[1])
    results = {}
    results["files"], found = measured(lambda: _diff_files(paths), folder)
    _check(found, 148)
    repo = vcjax.Repository.init(folder / "repo")
    commits = [repo.commit(formats.read(path).tree) for path in paths]
    warm = [repo.commit(model) for model in small]
    repo.diff(*warm)
    gc.collect()
    results["commits"], found = measured(lambda: repo.diff(*commits), folder)
    _check(found, 148)
    leaves = {f"leaf_{i:03d}": np.full((1000, 830), i, np.float32) for i in range(150)}
    changed = {**leaves, "leaf_077": leaves["leaf_077"] + 1}
    commits = [repo.commit(model) for model in (leaves, changed)]
    results["one leaf"], found = measured(lambda: repo.diff(*commits), folder)
    _check(found, 1)
    return results


def _diff_files(paths: list[Path]) -> Any:
    """As `vcjax diff FILE FILE` does it."""
    old, new = map(open_file, paths)
    return diffing.examine(old, new)


def _check(found: Any, number: int) -> None:
    measured_leaves = [change for change in found.changes if change.stats is not None]
    if len(measured_leaves) != number or found.counts["changed"] != number:
        raise RuntimeError(f"{found.counts} is not what changed")
