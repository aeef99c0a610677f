"""TIES: trim, elect sign, disjoint merge (Yadav et al., 2023, arXiv 2306.01708, §3)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"name": "ties", "parameters": {"density": 0.2, "scale": 1.0}})
