"""Between the base and the mean, as far as angles say (Jang et al., 2024, §4)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"name": "model_stock", "parameters": {}})
