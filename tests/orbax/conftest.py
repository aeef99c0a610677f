"""What holds of Orbax's manager is tested of both, and so is ours."""

import numpy as np
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


@pytest.fixture
def manager():
    """Makes managers: (module, folder), options, and what else the constructor takes."""
    return open_manager


@pytest.fixture
def save():
    """Saves a small tree: (module, manager, step)."""
    return save_step


def open_manager(ocp, folder, *args, **options):
    keywords = {
        name: options.pop(name)
        for name in ("item_names", "item_handlers", "metadata", "handler_registry")
        if name in options
    }
    options.setdefault("enable_async_checkpointing", False)
    return ocp.CheckpointManager(
        folder, *args, options=ocp.CheckpointManagerOptions(**options), **keywords
    )


def save_step(ocp, made, step, tree=None, **keywords):
    return made.save(step, args=ocp.args.StandardSave(tree or {"w": np.full(3, step)}), **keywords)
