"""Stands for `orbax.checkpoint.checkpoint_manager`, with ours in the place of its classes."""

from typing import Any

from orbax.checkpoint import checkpoint_manager as theirs

from vcjax.orbax.manager.manager import CheckpointManager as CheckpointManager
from vcjax.orbax.manager.options import CheckpointManagerOptions as CheckpointManagerOptions


def __getattr__(name: str) -> Any:
    return getattr(theirs, name)
