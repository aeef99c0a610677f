"""Disks that are full, limited or read-only: refused with a hint, and nothing lost."""

import errno
import os
import shutil
import sys
import textwrap

import numpy as np
import pytest

import vcjax
from vcjax.errors import StorageError

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
def test_a_file_that_cannot_grow(repo, processes, limit):
    """RLIMIT_FSIZE makes writes fail half-way with EFBIG, wherever a commit is by then."""
    kept = repo.commit({"w": np.zeros(100_000)}, "kept")
    out, err = processes.python(FULL, repo.url, limit).finish()
    assert out.startswith("refused:"), err
    fresh = vcjax.Repository.open(repo.url)
    assert fresh.resolve("HEAD").digest == kept.digest
    assert fresh.fsck().ok
    fresh.commit({"w": np.ones(100_000)}, "works again")
    assert fresh.fsck().ok


@pytest.fixture
def small_disk(tmp_path, processes):
    """A file system of 2 MiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if processes.start("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder).wait():
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    processes.start("umount", "-l", folder).finish()


def test_a_full_disk(small_disk):
    repo = vcjax.Repository.init(small_disk / "repo")
    kept = repo.commit({"w": np.arange(1000.0)}, "kept")
    with pytest.raises(StorageError) as caught:
        repo.commit({"w": np.arange(400_000.0)}, "too large")
    assert "disk is full" in str(caught.value.hint)
    assert "No space left" in str(caught.value)
    fresh = vcjax.Repository.open(small_disk / "repo")
    assert fresh.resolve("HEAD").digest == kept.digest
    assert fresh.fsck().ok
    fresh.gc(unsafe=True)
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


def test_pruning_frees_a_disk_that_is_full_to_the_last_byte(small_disk):
    """The notes are empty files, and say why as soon as there is space for it."""
    repo = vcjax.Repository.init(small_disk / "repo")
    commits = [repo.commit({"w": np.full(40_000, i, np.float32)}, f"{i}") for i in range(3)]
    descriptor = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        fill(descriptor)
    os.close(descriptor)
    before = os.statvfs(small_disk).f_bfree
    report = vcjax.Repository.open(repo.url).prune(["HEAD~2"], "keeping two")
    assert report.commits == (commits[0].digest,)
    assert (os.statvfs(small_disk).f_bfree - before) * 4096 > 100_000
    fresh = vcjax.Repository.open(repo.url)
    with pytest.raises(vcjax.errors.PrunedError, match="keeping two"):
        fresh.restore(commits[0])
    assert fresh.restore("HEAD~1")["w"][0] == 1
    assert fresh.fsck().problems == []
    fresh.commit({"w": np.full(10_000, 7, np.float32)}, "fits")


READ_ONLY = """
    import sys
    import vcjax
    folder = sys.argv[1]
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


@pytest.fixture
def bound_by_modes(processes):
    """A command's first words: what may write only where the modes of files allow it.

    Root stays root, so that it reaches the checkout and the interpreter wherever they lie, and
    gives up the right to write in spite of the modes.
    """
    if os.getuid() != 0:
        return ()
    words = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    if shutil.which("setpriv") is None or processes.start(*words, "true").wait():
        pytest.skip("root cannot give up its rights: setpriv (of util-linux) does not work here")
    return words


def test_a_read_only_folder(tmp_path, processes, bound_by_modes):
    """Reading works, and every change is refused with a hint."""
    repo = vcjax.Repository.init(tmp_path / "repo")
    repo.commit({"w": 1}, "kept")
    paths = [tmp_path, *tmp_path.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        command = (*bound_by_modes, sys.executable, "-c", textwrap.dedent(READ_ONLY), repo.url)
        assert processes.start(*command).finish()[0] == "ok\n"
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
