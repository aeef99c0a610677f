from .plan import ABSENT as ABSENT
from .plan import Decision as Decision
from .plan import MergePlan as MergePlan
from .plan import plan_merge as plan_merge
from .plan import plan_octopus as plan_octopus
