"""Disks that are full, limited or read-only: refused with a hint, and nothing lost."""

import errno
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

import vcjax
from vcjax.errors import StorageError

from ..subprocesses import run

FULL = """
    import resource, signal, sys
    import numpy as np
    import vcjax
    repo = vcjax.Repository.open(sys.argv[1])
    # Starts the threads: their semaphores are files to the kernel, too.
    vcjax.Repository.init("memory://warm").commit({"w": np.ones(100_000)}, "warm")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        repo.commit({"w": np.ones(100_000), "v": np.ones(2000)}, "too large")
    except vcjax.errors.StorageError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("limit", [0, 100, 1000, 20_000, 500_000])
def test_a_file_that_cannot_grow(repo, limit):
    """RLIMIT_FSIZE makes writes fail half-way with EFBIG, wherever a commit is by then."""
    kept = repo.commit({"w": np.zeros(100_000)}, "kept")
    child = run(FULL, repo.url, limit)
    out, err = child.communicate(timeout=60)
    assert out.startswith("refused:"), err
    assert child.returncode == 0
    fresh = vcjax.Repository.open(repo.url)
    assert fresh.resolve("HEAD").digest == kept.digest
    assert fresh.fsck().ok
    fresh.commit({"w": np.ones(100_000)}, "works again")
    assert fresh.fsck().ok


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk):
    repo = vcjax.Repository.init(small_disk / "repo")
    kept = repo.commit({"w": np.arange(1000.0)}, "kept")
    with pytest.raises(StorageError) as caught:
        repo.commit({"w": np.arange(400_000.0)}, "too large")
    assert "disk is full" in caught.value.hint
    assert "No space left" in str(caught.value)
    fresh = vcjax.Repository.open(small_disk / "repo")
    assert fresh.resolve("HEAD").digest == kept.digest
    assert fresh.fsck().ok
    fresh.gc(force=True)
    fresh.commit({"w": np.arange(100_000.0)}, "fits")
    assert fresh.fsck().ok


def fill(descriptor):
    while True:
        os.write(descriptor, bytes(4096))


def test_a_disk_that_fills_up_to_the_last_byte(small_disk):
    """Each write of a commit fails once: as little as the ref may not fit any more."""
    repo = vcjax.Repository.init(small_disk / "repo")
    acknowledged = []
    filler = small_disk / "filler"
    for blocks in range(20):
        filler.unlink(missing_ok=True)
        descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            fill(descriptor)
        os.close(descriptor)
        os.truncate(filler, max(0, filler.stat().st_size - 4096 * blocks))
        try:
            commit = repo.commit({"w": np.full(500, blocks, np.float32)}, str(blocks))
        except StorageError:
            continue
        acknowledged.append(commit.digest)
    filler.unlink()
    fresh = vcjax.Repository.open(small_disk / "repo")
    assert 0 < len(acknowledged) < 20
    assert fresh.resolve("HEAD").digest == acknowledged[-1]
    assert [commit.digest for commit in fresh.log()] == acknowledged[::-1]
    assert fresh.fsck().ok


READ_ONLY = """
    import os, sys
    import vcjax
    folder = sys.argv[1]
    vcjax.Repository.open(folder).restore()  # loads what an unprivileged process may not
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    repo = vcjax.Repository.open(folder)
    assert repo.restore() == {"w": 1}
    assert [commit.message for commit in repo.log()] == ["kept"]
    for action in (
        lambda: repo.commit({"w": 2}, ""),
        lambda: repo.commit({"w": 2}, "", branch="new"),
        lambda: repo.branch("x"),
        lambda: repo.tag("x"),
        lambda: repo.undo(),
        lambda: repo.switch("main"),
    ):
        try:
            action()
        except vcjax.errors.StorageError as error:
            assert error.hint, error
        else:
            sys.exit("was not refused")
    assert repo.restore() == {"w": 1}
    assert repo.fsck().ok
    print("ok")
"""


def test_a_read_only_folder():
    """Reading works, and every change is refused with a hint."""
    with tempfile.TemporaryDirectory() as name:
        repo = vcjax.Repository.init(Path(name) / "repo")
        repo.commit({"w": 1}, "kept")
        paths = [Path(name), *Path(name).rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            out, err = run(READ_ONLY, repo.url, cwd="/").communicate(timeout=60)
        finally:
            for path in paths:
                path.chmod(0o755 if path.is_dir() else 0o644)
    assert out == "ok\n", err
