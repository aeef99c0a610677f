from .executor import execute as execute
from .job import Job as Job
from .merge import Merge as Merge
from .model import Model as Model
