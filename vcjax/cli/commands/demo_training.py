"""What `vcjax demo` trains: a small convolutional network on scikit-learn's digits."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from flax.training.train_state import TrainState
from scipy import ndimage
from sklearn import datasets, model_selection

BATCH = 64
LEARNING_RATE = 1e-3
TEST_FRACTION = 0.3


class Network(linen.Module):
    """Three convolutions and a linear classifier."""

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Scores `[n, 10]` of the ten digits for images `[n, 8, 8]`."""
        x = linen.relu(linen.Conv(32, (3, 3), name="stem")(images[..., None]))
        x = linen.relu(linen.Conv(128, (3, 3), strides=2, name="body")(x))
        x = linen.relu(linen.Conv(32, (3, 3), strides=2, name="neck")(x))
        return linen.Dense(10, name="head")(x.reshape(len(x), -1))


@dataclass(frozen=True)
class Digits:
    """Handwritten digits seen in one way, in two parts.

    Attributes:
        train: images `float32[n, 8, 8]` in [0, 1] and labels `int32[n]` to learn from.
        test: those held out.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load_digits(seed: int) -> dict[str, Digits]:
    """The digits as they are, faded (half the contrast, on grey) and tilted (by 30°).

    The same digits are held out of all three.

    Source: E. Alpaydin and C. Kaynak, 1998, UCI "Optical Recognition of Handwritten
    Digits", of which scikit-learn brings 1797 images.
    """
    pixels, labels = datasets.load_digits(return_X_y=True)
    plain = np.asarray(pixels / 16, np.float32).reshape(-1, 8, 8)
    views = {
        "plain": plain,
        "faded": 0.5 + 0.5 * plain,
        "tilted": ndimage.rotate(plain, 30, axes=(1, 2), reshape=False, order=1),
    }
    train, test = model_selection.train_test_split(
        np.arange(len(plain)), test_size=TEST_FRACTION, stratify=labels, random_state=seed
    )
    labels = np.asarray(labels, np.int32)
    return {
        name: Digits((images[train], labels[train]), (images[test], labels[test]))
        for name, images in views.items()
    }


def create_state(seed: int) -> TrainState:
    """A network with random weights, and Adam."""
    network = Network()
    params = network.init(jax.random.key(seed), jnp.zeros((1, 8, 8)))["params"]
    return TrainState.create(apply_fn=network.apply, params=params, tx=optax.adam(LEARNING_RATE))


def freeze(state: TrainState, layers: Sequence[str]) -> TrainState:
    """The same weights and step, with an optimizer that leaves some layers as they are."""
    optimizer = optax.partition(
        {"trained": optax.adam(LEARNING_RATE), "frozen": optax.set_to_zero()},
        {layer: "frozen" if layer in layers else "trained" for layer in state.params},
    )
    return state.replace(tx=optimizer, opt_state=optimizer.init(state.params))


@jax.jit
def train_step(
    state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array
) -> TrainState:
    """One step on a batch that depends on the key and the step alone, so a run can be resumed."""
    chosen = jax.random.randint(jax.random.fold_in(key, state.step), (BATCH,), 0, len(images))

    def loss(params: optax.Params) -> jax.Array:
        scores = state.apply_fn({"params": params}, images[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels[chosen]).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


@functools.partial(jax.jit, static_argnames="network")
def _accuracy(
    network: Any, params: optax.Params, images: jax.Array, labels: jax.Array
) -> jax.Array:
    return (network({"params": params}, images).argmax(axis=-1) == labels).mean()


def evaluate(state: TrainState, digits: dict[str, Digits]) -> dict[str, float]:
    """{view of the digits: share of the held-out ones that are recognised}."""
    return {
        name: float(_accuracy(state.apply_fn, state.params, *view.test))
        for name, view in digits.items()
    }
