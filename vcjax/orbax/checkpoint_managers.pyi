from orbax.checkpoint.checkpoint_managers import *

from .manager.manager import CheckpointManager as CheckpointManager
from .manager.options import CheckpointManagerOptions as CheckpointManagerOptions
