from .catalogue import installed as installed
from .catalogue import package_of as package_of
from .catalogue import update_named as update_named
from .difference import MAX_SHARE as MAX_SHARE
from .difference import BaseLeaf as BaseLeaf
from .difference import Difference as Difference
from .difference import check_pair as check_pair
from .difference import choose_base as choose_base
from .difference import sources as sources
from .update import FIRST as FIRST
from .update import MAX_DEPTH as MAX_DEPTH
from .update import MAX_READS as MAX_READS
from .update import ArrayContent as ArrayContent
from .update import Content as Content
from .update import Index as Index
from .update import Parts as Parts
from .update import Region as Region
from .update import Update as Update

__all__: list[str]
