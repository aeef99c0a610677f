"""Makes a small repository that has something of everything, zipped.

`repository_v1.zip` is what the last vcjax that wrote version 1 made of this. Whoever raises
the format version runs it once before, with the code that still writes the old one:

    python tests/data/make.py tests/data/repository_vN.zip

The keys that it holds are those of a folder; `CONTENT` says what it restores to.
"""

import shutil
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

import vcjax

EPOCH = (1980, 1, 1, 0, 0, 0)


def tree(step):
    """Leaves that are stored in every way: dense, difference, packed, inline, plain."""
    big = np.zeros(1_100_000, np.float32)  # two chunks
    big[0] = step
    return {
        "big": big,
        "packed": np.full(200, step, np.float32),
        "inline": np.array([step, -step], np.int16),
        "name": f"step {step}",
        "step": step,
    }


CONTENT = {"main": 2, "main~1": 1, "v1": 1, "side": 5, "main@{1}": 3}
"""{revision: the number of its `tree`}; `main~2` is pruned, `gone` was a branch."""


def make(folder):
    """Makes the repository."""
    repo = vcjax.Repository.init(folder, compress=True)
    for step in range(4):
        repo.commit(tree(step), f"step {step}", metadata={"step": step}, metrics={"loss": 1.0})
    repo.undo()
    repo.tag("v1", "main~1")
    repo.branch("side", "main~1")
    repo.branch("gone", "main")
    repo.delete_branch("gone")
    repo.switch("main", detach=True)
    repo.commit({"detached": np.arange(3)}, "on no branch")
    repo.switch("main")
    repo.commit(tree(5), "another side", branch="side")
    with suppress(vcjax.ConflictError):  # it is under way now, which is what this is for
        repo.merge("main", "side", keep_conflicts=True)
    repo.prune(["main~2"], "the fixture")


def pack(folder, target):
    """Zips a folder, the same bytes for the same content."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    made = Path(tempfile.mkdtemp()) / "repo"
    make(made)
    pack(made, sys.argv[1])
    shutil.rmtree(made.parent)
