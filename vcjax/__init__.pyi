from . import merging as merging
from ._version import __version__ as __version__
from .diffing import LeafChange as LeafChange
from .diffing import TreeDiff as TreeDiff
from .diffing import diff as diff
from .errors import ConflictError as ConflictError
from .errors import CorruptionError as CorruptionError
from .errors import VcjaxError as VcjaxError
from .history import Commit as Commit
from .history import Manifest as Manifest
from .history import Ref as Ref
from .merging import merge as merge
from .orbax import CheckpointManager as CheckpointManager
from .orbax import CheckpointManagerOptions as CheckpointManagerOptions
from .repo import Repository as Repository
from .threeway import MergePlan as MergePlan

__all__: list[str]
