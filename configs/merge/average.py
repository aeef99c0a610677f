"""The mean of the models (Wortsman et al., 2022, "Model soups", §2)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict({"name": "average", "parameters": {}})
