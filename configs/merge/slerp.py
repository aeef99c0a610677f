"""Spherical interpolation of two models, leaf by leaf (Shoemake, 1985)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"name": "slerp", "parameters": {"t": 0.5}})
