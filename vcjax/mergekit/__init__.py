"""Recipes of mergekit: read, translated into methods, and run on folders of safetensors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
