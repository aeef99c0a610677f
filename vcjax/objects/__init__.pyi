from .collect import GcPlan as GcPlan
from .collect import plan_gc as plan_gc
from .collect import sweep as sweep
from .store import ObjectStore as ObjectStore
from .store import StagedLeaf as StagedLeaf
from .verify import FsckReport as FsckReport
from .verify import Problem as Problem
from .verify import fsck as fsck
