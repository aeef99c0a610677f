from .threeway import ABSENT as ABSENT
from .threeway import Decision as Decision
from .threeway import MergePlan as MergePlan
from .threeway import plan_merge as plan_merge
