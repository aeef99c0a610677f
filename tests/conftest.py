"""Eight simulated CPU devices for every test, and what tests of several folders ask for."""

import os
import secrets

import pytest

# Before anything imports JAX.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()


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
    """For tests that compile hundreds of programs and run each once: optimising takes the time."""
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
