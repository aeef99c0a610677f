"""DARE, then TIES' sign election and disjoint merge (Yu et al., 2024, arXiv 2311.03099, §4.3)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    parameters = {"density": 0.5, "scale": 1.0, "rescale": "density"}
    return ConfigDict({"name": "dare_ties", "parameters": parameters})
