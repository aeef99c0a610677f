"""Merge methods as pure, jitted, differentiable tree maps, and how they compose.

`merge(trees, method)` needs no repository. Methods are chains of small
transforms (`task_vectors`, `trim`, `elect_sign`, …) under the names of their
papers: `ties(density=0.2)`, `slerp(t=0.5)`, `model_stock()`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
