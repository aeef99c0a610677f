from .manager import CheckpointManager as CheckpointManager
from .options import CheckpointManagerOptions as CheckpointManagerOptions
