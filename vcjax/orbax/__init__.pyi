from .checkpointers import AsyncCheckpointer as AsyncCheckpointer
from .checkpointers import Checkpointer as Checkpointer
from .checkpointers import PyTreeCheckpointer as PyTreeCheckpointer
from .checkpointers import StandardCheckpointer as StandardCheckpointer
from .manager.manager import CheckpointManager as CheckpointManager
from .manager.options import CheckpointManagerOptions as CheckpointManagerOptions
