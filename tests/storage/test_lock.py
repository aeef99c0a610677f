"""The lock of a folder, with and without `flock`, and file systems that lack more."""

import errno
import fcntl
import json
import os
import shutil
import sys
import threading

import pytest

import vcjax
from vcjax.cli.commands import doctor
from vcjax.errors import StorageError
from vcjax.storage import lock, open_store
from vcjax.storage.lock import BREAK_NAME, HELD_NAME, FolderLock, file_options

from ..subprocesses import environment


def refuse(number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=str)
def kind(request, monkeypatch):
    """ "flock", or "file" where that does not work, for several reasons."""
    if request.param is not None:
        monkeypatch.setattr(fcntl, "flock", refuse(request.param))
    return "flock" if request.param is None else "file"


@pytest.fixture
def no_flock(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))


def test_one_holds_it_at_a_time(kind, tmp_path):
    """Threads that count in a file lose no count."""
    assert FolderLock(tmp_path).kind == kind
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count():
        for _ in range(50):
            with FolderLock(tmp_path).held():
                counter.write_text(str(int(counter.read_text()) + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "200"
    assert not (tmp_path / HELD_NAME).exists()


def test_writers_lose_no_commit(kind, tmp_path):
    repo = vcjax.Repository.init(tmp_path / "repo")

    def commit(number):
        own = vcjax.Repository.open(tmp_path / "repo")
        own.commit({"n": number}, str(number), rebase=False)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {commit.message for commit in repo.log()} == {"0", "1", "2", "3"}
    assert not repo.fsck().problems
    assert repo.store.lock == kind


def held_by(folder, **fields):
    (folder / HELD_NAME).write_text(json.dumps({**json.loads(lock._token()), **fields}))


def test_what_a_killed_process_left_is_taken_away(no_flock, processes, tmp_path):
    child = processes.python("")
    child.finish()
    held_by(tmp_path, pid=child.pid)
    with FolderLock(tmp_path).held():
        assert json.loads((tmp_path / HELD_NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / BREAK_NAME).exists()


@pytest.mark.parametrize(
    ("fields", "owner"),
    [
        ({"host": "other", "machine": "x", "pid": 7}, "process 7 on other"),
        ({"pid": 0.5}, "unknown"),
    ],
)
def test_nobody_else_is_robbed(no_flock, monkeypatch, tmp_path, fields, owner):
    monkeypatch.setattr(lock, "PATIENCE_S", 0.05)
    held_by(tmp_path, **fields)
    before = (tmp_path / HELD_NAME).read_bytes()
    with pytest.raises(StorageError, match=owner) as caught, FolderLock(tmp_path).held():
        pytest.fail("it was held")
    assert "flock" in (caught.value.hint or "")
    assert (tmp_path / HELD_NAME).read_bytes() == before


def test_other_refusals_are_errors(monkeypatch, tmp_path):
    store = vcjax.Repository.init(tmp_path / "repo").store
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(StorageError, match="Input/output error"):
        store.compare_and_set("x", b"1", store.read_versioned("x"))


def test_the_doctor_says_which(kind, tmp_path):
    (tmp_path / "repo").mkdir()
    store = open_store(tmp_path / "repo")
    store.make_folder()
    found = {finding.name: finding for finding in doctor.probe(store)}["compare-and-set"]
    assert found.status == ("ok" if kind == "flock" else "warn")
    assert "lock file" in found.detail if kind == "file" else "flock" in found.detail


def test_a_folder_that_may_only_be_read(tmp_path, monkeypatch):
    vcjax.Repository.init(tmp_path / "repo").commit({"n": 1}, "x")
    for number in (errno.EACCES, errno.EROFS):
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.open", refuse(number))
            file_options.cache_clear()
            assert file_options(tmp_path / "repo") == {}
    file_options.cache_clear()


LIBRARY = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static int refuse(int error) { errno = error; return -1; }
#ifdef NO_LOCKS
static int of_locks(int fd, int command, long argument) {
  if (command == F_SETLK || command == F_SETLKW) return refuse(ENOSYS);
  if (command == F_OFD_SETLK || command == F_OFD_SETLKW) return refuse(ENOSYS);
  return syscall(SYS_fcntl, fd, command, argument);
}
#define TAKE va_list all; va_start(all, command); long one = va_arg(all, long); va_end(all);
int flock(int fd, int how) { return refuse(ENOSYS); }
int fcntl(int fd, int command, ...) { TAKE return of_locks(fd, command, one); }
int fcntl64(int fd, int command, ...) { TAKE return of_locks(fd, command, one); }
#else
static int is_folder(int fd) { struct stat s; return !fstat(fd, &s) && S_ISDIR(s.st_mode); }
int fsync(int fd) { return is_folder(fd) ? refuse(EINVAL) : syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return is_folder(fd) ? refuse(EINVAL) : syscall(SYS_fdatasync, fd); }
#endif
"""
"""Stands between a program and a kernel whose file systems know no locks, or no such fsync."""

USE = """
import numpy as np, vcjax
repo = vcjax.Repository.init("a/b")
for n in range(2):
    repo.commit({"large": np.full(50_000, n), "small": np.full(500, n), "n": n}, str(n))
assert vcjax.Repository.open("a/b").restore("HEAD~1")["large"][7] == 0
print(repo.store.lock, len(repo.fsck().problems))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD is of Linux")
@pytest.mark.parametrize(("what", "printed"), [("LOCKS", "file 0"), ("FOLDER_SYNC", "flock 0")])
def test_file_systems_that_lack_something(tmp_path, processes, what, printed):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "x.c").write_text(LIBRARY)
    library = tmp_path / "x.so"
    words = [compiler, "-shared", "-fPIC", f"-DNO_{what}", "-o", library, tmp_path / "x.c"]
    processes.start(*words).finish()
    lacking = environment(LD_PRELOAD=str(library))
    done = processes.python(USE, cwd=tmp_path, env=lacking)
    assert done.finish()[0].strip() == printed
