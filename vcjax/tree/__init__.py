"""PyTree <-> {leaf path: leaf}: paths, skeletons, leaf kinds, Flax adapters, path patterns."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
