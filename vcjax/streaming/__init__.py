"""Merging models larger than memory: leaf by leaf and slice by slice, read ahead."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
