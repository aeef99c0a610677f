"""What works where Python lacks `fcntl` and the other names of POSIX, as on Windows."""

import sys
from pathlib import Path

import numpy as np
import pytest

import vcjax

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


@pytest.fixture
def windows(processes, tmp_path):
    """What some Python prints, to stdout and to stderr, where the names of POSIX are hidden."""

    def run(code, exit_code=0):
        words = ("-W", "ignore", "-c", WINDOWS + code)
        out, errors = processes.start(sys.executable, *words, cwd=tmp_path).finish(exit_code)
        assert "Traceback" not in errors
        return out + errors

    return run


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_repository_in_memory(windows):
    assert windows(MEMORY).splitlines() == ["2 30000.0 True 4", "unknown <unknown"]


def test_a_new_folder_is_refused_and_not_made(windows, tmp_path):
    code = "from vcjax.cli import main; sys.exit(main(['init', 'repo']))"
    said = windows(code, 1)
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
def test_a_folder_is_read_and_not_written(windows, tmp_path, write):
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
    first, *said = windows(code).splitlines()
    assert first == "1 ['one', 'zero']"
    assert "this system has no fcntl.flock" in said[0]
    assert said[1].startswith("  hint: ")
    assert files(tmp_path) == before


def test_checkpoint_files(windows):
    assert windows(FILES).split() == ["10"] * 3


def test_files_that_are_written_piece_by_piece_are_refused(windows):
    said = windows(SHARDS)
    assert "this system has no os.pwrite" in said
    assert said.endswith("False\n")
