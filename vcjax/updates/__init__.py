"""How a leaf's content is expressed relative to another leaf, and choosing one way."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
