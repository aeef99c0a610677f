"""Orbax's calls on a repository: `import vcjax.orbax as ocp`, and every save is a commit.

What touches storage is ours (`CheckpointManager`, `StandardCheckpointer`, …); every
other public name of `orbax.checkpoint` (`args`, `RestoreArgs`, policies, handlers, …) is
Orbax's own object, found through this module on first use. Importing it imports neither
Orbax nor JAX.
"""

from typing import Any

import lazy_loader

# Listed here and not read from the stub: that says to editors that Orbax's names are here too,
# which lazy_loader does not understand. A test compares the two.
_ours, _, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpointers": [
            "AsyncCheckpointer",
            "Checkpointer",
            "PyTreeCheckpointer",
            "StandardCheckpointer",
        ],
        "manager.manager": ["CheckpointManager"],
        "manager.options": ["CheckpointManagerOptions"],
    },
)

_REPLACED = ("checkpoint_manager", "checkpoint_managers", "checkpointers")
"""Orbax's submodules that hold classes that are ours here."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _ours(name)
    if name in _REPLACED:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    if name.startswith("__") and name != "__version__":  # what Python itself asks modules for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import orbax.checkpoint

    return getattr(orbax.checkpoint, name)


def __dir__() -> list[str]:
    import orbax.checkpoint

    theirs = [name for name in dir(orbax.checkpoint) if not name.startswith("_")]
    return sorted({*__all__, *theirs, "__version__"})
