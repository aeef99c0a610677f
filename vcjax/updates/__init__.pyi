from .chunks import MAX_DEPTH as MAX_DEPTH
from .chunks import MAX_SHARE as MAX_SHARE
from .chunks import BaseLeaf as BaseLeaf
from .chunks import Difference as Difference
from .chunks import choose_base as choose_base
from .chunks import sources as sources
