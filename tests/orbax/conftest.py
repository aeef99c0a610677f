"""What holds of Orbax's manager is tested of both, and so is ours."""

import pytest


@pytest.fixture(params=["orbax.checkpoint", "vcjax.orbax"])
def ocp(request):
    """Orbax, then ours in its place."""
    import importlib

    return importlib.import_module(request.param)


@pytest.fixture
def ours():
    """What a program has after it changed one import."""
    import vcjax.orbax as ocp

    return ocp
