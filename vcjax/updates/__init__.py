"""How leaves are expressed relative to others: what an update is, and which there are."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
