"""Select by variance, calculate weights, erase minority signs (Wan et al., 2024, §3.3)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"name": "sce", "parameters": {"select_topk": 1.0}})
