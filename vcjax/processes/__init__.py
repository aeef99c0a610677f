"""Several processes of one program: their conversation, who owns what, and sending parts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
