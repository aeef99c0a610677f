"""Checkpoint files: Flax msgpack, safetensors, NumPy npz, and plug-ins for others."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
