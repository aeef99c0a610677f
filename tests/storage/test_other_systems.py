"""What works where Python lacks `fcntl` and the other names of POSIX, as on Windows."""

import os
import subprocess
import sys

import numpy as np
import pytest

import vcjax

from ..subprocesses import ROOT

WINDOWS = """
import os, sys
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "fdatasync", "fork", "pread", "pwrite", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
"""

MEMORY = """
import numpy as np, vcjax
repo = vcjax.Repository.init("memory://x")
repo.commit({"w": np.zeros(30_000), "n": 1}, "one")
repo.branch("side")
repo.commit({"w": np.ones(30_000), "n": 1}, "two")
repo.commit({"w": np.zeros(30_000), "n": 2}, "three", branch="side")
repo.merge("side")
print(repo.restore()["n"], repo.restore()["w"].sum(), repo.fsck().ok, len(list(repo.log())))
print(repo.resolve("HEAD").author.partition("@")[0])
"""

FILES = """
from pathlib import Path
import numpy as np
from vcjax import formats
for name in ("model.safetensors", "model.msgpack", "model.npz"):
    formats.write(Path(name), {"w": np.arange(5)})
    print(formats.read(Path(name)).tree["w"].sum())
"""

SHARDS = """
from pathlib import Path
import numpy as np, vcjax
from vcjax.formats.sharded import ShardWriter
try:
    ShardWriter(Path("model"), {"w": (np.dtype("f4"), (2,))}, {}, "key")
except vcjax.errors.StorageError as error:
    print(error, Path("model").exists())
"""


def windows(code, folder, *words):
    """What some Python prints where the names of POSIX are hidden."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WINDOWS + code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_repository_in_memory(tmp_path):
    assert windows(MEMORY, tmp_path).splitlines() == ["2 30000.0 True 4", "unknown <unknown"]


def test_a_new_folder_is_refused_and_not_made(tmp_path):
    code = "from vcjax.cli import main; sys.exit(main(['init', 'repo']))"
    said = windows(code, tmp_path)
    assert said.startswith("error: cannot write to ")
    assert "this system has no fcntl.flock" in said
    assert "hint: keep the repository in a bucket" in said
    assert not files(tmp_path)


WRITERS = [
    'repo.commit({"w": np.ones(90_000), "n": 2}, "two")',
    'repo.commit({"n": 2}, "two")',
    'repo.branch("side")',
    'repo.tag("v1")',
    "repo.undo()",
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_is_read_and_not_written(tmp_path, write):
    repo = vcjax.Repository.init(tmp_path / "repo")
    repo.commit({"w": np.zeros(90_000), "n": 0}, "zero")
    repo.commit({"w": np.zeros(90_000), "n": 1}, "one")
    before = files(tmp_path)
    code = f"""
import numpy as np, vcjax
repo = vcjax.Repository.open("repo")
print(repo.restore()["n"], [commit.message for commit in repo.log()])
try:
    {write}
except vcjax.errors.StorageError as error:
    print(error)
"""
    first, *said = windows(code, tmp_path).splitlines()
    assert first == "1 ['one', 'zero']"
    assert "this system has no fcntl.flock" in said[0]
    assert said[1].startswith("  hint: ")
    assert files(tmp_path) == before


def test_checkpoint_files(tmp_path):
    assert windows(FILES, tmp_path).split() == ["10"] * 3


def test_files_that_are_written_piece_by_piece_are_refused(tmp_path):
    said = windows(SHARDS, tmp_path)
    assert "this system has no os.pwrite" in said
    assert said.endswith("False\n")
