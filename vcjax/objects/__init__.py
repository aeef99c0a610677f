"""Leaf objects and packs: TensorStore zarr arrays named by the digest of their content."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
