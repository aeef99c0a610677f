from .store import Store as Store
from .store import Versioned as Versioned
from .store import open_store as open_store
from .urls import Location as Location
from .urls import parse_url as parse_url
