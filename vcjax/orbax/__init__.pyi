from orbax.checkpoint import *
from orbax.checkpoint import __version__ as __version__

from . import checkpoint_manager as checkpoint_manager
from . import checkpoint_managers as checkpoint_managers
from . import checkpointers as checkpointers
from .checkpointers import AsyncCheckpointer as AsyncCheckpointer
from .checkpointers import Checkpointer as Checkpointer
from .checkpointers import PyTreeCheckpointer as PyTreeCheckpointer
from .checkpointers import StandardCheckpointer as StandardCheckpointer
from .manager.manager import CheckpointManager as CheckpointManager
from .manager.options import CheckpointManagerOptions as CheckpointManagerOptions

__all__: list[str]
