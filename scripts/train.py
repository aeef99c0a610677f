"""Trains a network on scikit-learn's digits, and goes on where it was stopped.

    python scripts/train.py --config=configs/digits.py --workdir=digits
    python scripts/train.py --config=configs/digits.py --config.learning_rate=3e-4 --branch=slow

The working folder is a vcjax repository. Start the script again with the same
working folder and it continues from the latest step; every batch depends on the
seed and the step alone, so the outcome is the same as without the interruption.
"""

import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax.training.train_state import TrainState
from ml_collections import config_flags
from sklearn.datasets import load_digits

import vcjax

CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", "What to train, and how.")
WORKDIR = flags.DEFINE_string("workdir", "digits", "Path or URL of the repository.")
BRANCH = flags.DEFINE_string("branch", "main", "Branch to train on; made at HEAD if there is none.")

Batch = tuple[np.ndarray, np.ndarray]
Config = Any
"""An `ml_collections.ConfigDict`, of which every field has a type of its own."""


class Network(nn.Module):
    """A multi-layer perceptron.

    Attributes:
        features: widths of the hidden layers.
    """

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[n, 10]` for images `[n, 64]`."""
        for i, width in enumerate(self.features):
            x = nn.relu(nn.Dense(width, name=f"hidden_{i}")(x))
        return nn.Dense(10, name="head")(x)


def load_data(config: Config) -> tuple[Batch, Batch]:
    """Images `float32[n, 64]` in [0, 1] and labels `int32[n]`: to train on, and held out."""
    images, labels = load_digits(return_X_y=True)
    images, labels = np.asarray(images / 16, np.float32), np.asarray(labels, np.int32)
    order = np.random.default_rng(config.seed).permutation(len(images))
    test, train = np.split(order, [round(config.test_fraction * len(images))])
    return (images[train], labels[train]), (images[test], labels[test])


def create_state(config: Config) -> TrainState:
    """A network with random weights, and AdamW."""
    network = Network(tuple(config.features))
    params = network.init(jax.random.key(config.seed), jnp.zeros((1, 64)))["params"]
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    return TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)


def cross_entropy(state: TrainState, params: optax.Params, batch: Batch) -> jax.Array:
    """Mean loss over a batch."""
    logits = state.apply_fn({"params": params}, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@jax.jit
def train_step(state: TrainState, batch: Batch) -> TrainState:
    """One step of gradient descent."""
    grads = jax.grad(lambda params: cross_entropy(state, params, batch))(state.params)
    return state.apply_gradients(grads=grads)


@jax.jit
def metrics(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """Loss and accuracy on some images."""
    logits = state.apply_fn({"params": state.params}, batch[0])
    accuracy = (logits.argmax(axis=-1) == batch[1]).mean()
    return {"loss": cross_entropy(state, state.params, batch), "accuracy": accuracy}


def batch_at(config: Config, step: int, data: Batch) -> Batch:
    """The batch of a step; the same one whenever it is asked for."""
    random = np.random.default_rng((config.seed, step))
    chosen = random.integers(len(data[0]), size=config.batch_size)
    return data[0][chosen], data[1][chosen]


def open_manager(config: Config, url: str, branch: str) -> vcjax.CheckpointManager:
    """The repository on the branch to train on."""
    repo = vcjax.Repository.init(url, branch=branch, exist_ok=True)
    if repo.head.branch != branch:
        repo.switch(branch, create=branch not in repo.branches)
    options = vcjax.CheckpointManagerOptions(
        save_interval_steps=config.save_every_steps,
        max_to_keep=config.max_to_keep or None,
        best_fn=lambda values: values[config.best_metric],
    )
    return vcjax.CheckpointManager(url, options)


def train(config: Config, url: str, branch: str = "main") -> vcjax.Commit:
    """Trains up to `config.steps`, from the latest step that was saved."""
    train_data, test_data = load_data(config)
    state = create_state(config)
    with open_manager(config, url, branch) as manager:
        latest = manager.latest_step()
        if latest is not None:
            state = manager.restore(latest, like=state)
            logging.info("continuing from step %d of %s", latest, url)
        for step in range(1 + (latest or 0), 1 + config.steps):
            state = train_step(state, batch_at(config, step, train_data))
            last = step == config.steps
            if last or step % config.save_every_steps == 0:
                values = {name: float(x) for name, x in metrics(state, test_data).items()}
                manager.save(step, state, values, force=last)
                logging.info("step %d: %s", step, values)
    return manager.repo.resolve("HEAD")  # the last save is finished now


def main(argv: list[str]) -> None:
    """Trains and says where the result is."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        commit = train(CONFIG.value, WORKDIR.value, BRANCH.value)
    except vcjax.VcjaxError as error:
        sys.exit(f"error: {error}")
    print(f"{commit.digest[:8]} {commit.message}: {commit.metrics}")
    print(f"vcjax log --repo={WORKDIR.value} --oneline --metrics=loss,accuracy")


if __name__ == "__main__":
    app.run(main)
