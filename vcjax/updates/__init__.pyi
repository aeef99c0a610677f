from .difference import MAX_DEPTH as MAX_DEPTH
from .difference import MAX_SHARE as MAX_SHARE
from .difference import BaseLeaf as BaseLeaf
from .difference import Difference as Difference
from .difference import choose_base as choose_base
from .difference import sources as sources
