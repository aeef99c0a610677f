"""What changed between two trees: leaf statuses, jitted leaf statistics, `TreeDiff`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
