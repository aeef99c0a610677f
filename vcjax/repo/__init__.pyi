from .reader import Reader as Reader
from .repository import Repository as Repository
from .settings import Settings as Settings
from .settings import find as find
