"""The scale of merges of the demo's two models, for `scripts/sweep_merge.py`."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = "base"  # revisions of the demo's repository
    config.models = ("faded", "tilted")
    config.seed = 0  # of the demo: which digits are held out

    config.parameter = "scale"
    config.low, config.high, config.number = 0.0, 1.5, 31
    config.batch = 1  # merges computed at once: on CPU one is fastest

    # Every method is a curve; the parameters that are not swept.
    config.methods = ConfigDict(
        {
            "task_arithmetic": {},
            "ties": {"density": 0.2},
            "dare_ties": {"density": 0.5},
            "consensus": {},
            "iso_c": {},
        }
    )

    config.adamerging_steps = 100  # of learning on held-out images without labels; 0: none
    config.adamerging_batch = 64
    config.adamerging_rate = 1e-2
    return config
