"""How the content of leaves is expressed relative to others: the protocol, and what is installed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
