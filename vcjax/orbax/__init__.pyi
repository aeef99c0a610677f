from .checkpointers import AsyncCheckpointer as AsyncCheckpointer
from .checkpointers import Checkpointer as Checkpointer
from .checkpointers import PyTreeCheckpointer as PyTreeCheckpointer
from .checkpointers import StandardCheckpointer as StandardCheckpointer
from .manager import CheckpointManager as CheckpointManager
from .manager_options import CheckpointManagerOptions as CheckpointManagerOptions
