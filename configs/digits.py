"""A small network on scikit-learn's digits, for `scripts/train.py`."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.steps = 400
    config.batch_size = 64
    config.test_fraction = 0.2

    config.features = (128, 64)
    config.learning_rate = 1e-3
    config.weight_decay = 1e-4

    config.save_every_steps = 50
    config.max_to_keep = 0  # 0: keep every step
    config.best_metric = "accuracy"
    return config
