"""Eight simulated CPU devices for every test; must be set before JAX is imported."""

import os
import secrets

import pytest

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
