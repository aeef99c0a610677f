"""`--suite=durability`: one fsync for each file, against one sync of the file system.

Both write what a commit writes, chunks, then headers, then folders, through
TensorStore in the way of `vcjax.objects`; only when the data are forced to disk
differs. "file" is what vcjax does, "filesystem" leaves it all to `syncfs` at the
end, "none" shows what durability costs.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tensorstore as ts

from suites.measure import Measurement, measured, scratch
from suites.trees import gpt2_small, small, with_layer_changed
from vcjax.hashing import digest_array
from vcjax.objects.zarr import new_header

CONTENDERS = ("file", "filesystem", "none")

CASES = {
    "first save": "498 MB in 148 leaves, each an array of its own",
    "one layer changed": "28 MB in 12 leaves",
    "small save": "1 MB in one array; mean of fifty",
}

TARGETS: dict[tuple[str, str], float] = {}


def run(contender: str, parent: str) -> dict[str, dict[str, float]]:
    """All cases for one way of forcing data to disk, in this process."""
    tree = gpt2_small()
    layer = with_layer_changed(tree, 5)["h_05"]
    pack = {"pack": np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(small())])}
    cases: dict[str, dict[str, float]] = {}
    with scratch(parent) as folder:
        _write(folder / "warm", pack, contender)
        cost, _ = measured(lambda: _write(folder / "first", tree, contender), folder)
        cases["first save"] = cost.to_dict()
        cost, _ = measured(lambda: _write(folder / "layer", layer, contender), folder)
        cases["one layer changed"] = cost.to_dict()

        def fifty() -> None:
            for number in range(50):
                _write(folder / f"small{number}", pack, contender)

        total = measured(fifty, folder)[0]
        mean = Measurement(total.wall / 50, total.cpu / 50, total.peak, total.disk / 50)
        cases["small save"] = mean.to_dict()
    return cases


def _write(folder: Path, tree: dict, contender: str) -> None:
    """Chunks, then headers, then the folders, and what the contender does about the disk."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    context = ts.Context({"file_io_sync": contender == "file"})
    headers = [
        new_header(x.dtype.name, x.shape, digest_array(x.dtype.name, x), compress=False)
        for x in leaves
    ]
    futures = []
    for number, (leaf, header) in enumerate(zip(leaves, headers, strict=True)):
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/{number}/"},
            "metadata": header.metadata,
            "store_data_equal_to_fill_value": True,
        }
        array = ts.open(spec, open=True, assume_metadata=True, context=context).result()
        futures.append(array.write(leaf, can_reference_source_data_indefinitely=True))
    _wait(futures)
    store = ts.KvStore.open(f"file://{folder}/", context=context).result()
    named = enumerate(headers)
    _wait([store.write(f"{number}/zarr.json", header.encode()) for number, header in named])
    _FORCE[contender](folder)


def _wait(futures: list) -> None:
    for future in futures:
        future.result()


def _sync_folders(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        _with_descriptor(Path(path), os.fsync)
    _with_descriptor(folder.parent, os.fsync)


def _sync_file_system(folder: Path) -> None:
    def syncfs(descriptor: int) -> None:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs failed")

    _with_descriptor(folder, syncfs)


def _with_descriptor(folder: Path, action: Callable[[int], None]) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        action(descriptor)
    finally:
        os.close(descriptor)


_FORCE: dict[str, Callable[[Path], None]] = {
    "file": _sync_folders,
    "filesystem": _sync_file_system,
    "none": lambda _: None,
}
