"""Task vectors added to the base (Ilharco et al., 2023, §2)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    parameters = {"scale": 0.7, "normalize": False}
    return ConfigDict({"name": "task_arithmetic", "parameters": parameters})
