"""Eight simulated CPU devices for every test, and what tests of several folders ask for."""

import os
import secrets
import threading
from concurrent.futures import Future
from pathlib import Path

import hypothesis
import pytest

from .leftovers import Leftovers
from .subprocesses import Processes

# Before anything imports JAX.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

# What whoever runs the tests has set for vcjax and for rich is not for them.
for name in ("VCJAX_REPO", "VCJAX_AUTHOR", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

# On a busy machine one example may take any time.
hypothesis.settings.register_profile(
    "vcjax", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("vcjax")


@pytest.fixture(autouse=True)
def alone(tmp_path):
    """Each test has a working folder of its own, and leaves no process and no busy thread.

    What lives longer is started by a fixture of a wider scope: those are set up before this one.
    """
    before, folder = Leftovers(), Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(folder)
    left = before.found()
    assert not left, f"the test leaves {', '.join(left)}"


@pytest.fixture
def processes():
    """Starts other processes; none of them is left when the test ends."""
    with Processes() as started:
        yield started


@pytest.fixture
def waiting(monkeypatch):
    """A semaphore that is released once for each thread that begins to wait for a future."""
    begun = threading.Semaphore(0)

    def noted(wait):
        def begin(*arguments, **options):
            begun.release()
            return wait(*arguments, **options)

        return begin

    for name in ("result", "exception"):
        monkeypatch.setattr(Future, name, noted(getattr(Future, name)))
    return begun


@pytest.fixture
def repo(tmp_path):
    """An empty repository in a folder."""
    import vcjax

    return vcjax.Repository.init(tmp_path / "repo")


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path):
    """A place without a repository: a folder, or a name in memory."""
    if request.param == "folder":
        return str(tmp_path / "repo")
    return f"memory://{secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def compile_quickly():
    """For tests that compile hundreds of programs and run each once: optimising takes the time.

    `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest` runs them with programs as users have them.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ:
        yield
        return
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Runs a command line in an empty folder: (exit code, stdout, stderr)."""
    from vcjax.cli import main

    for name in ("VCJAX_REPO", "VCJAX_AUTHOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def cli_in(cli):
    """Runs a command line on a repository: (exit code, stdout, stderr)."""

    def run(repo, *words):
        return cli(f"--repo={repo.url}", *words)

    return run
