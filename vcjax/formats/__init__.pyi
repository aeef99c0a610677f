from .protocol import Checkpoint as Checkpoint
from .protocol import Format as Format
from .registry import format_named as format_named
from .registry import format_of as format_of
from .registry import formats as formats
from .registry import read as read
from .registry import write as write

__all__: list[str]
