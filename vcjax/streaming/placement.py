"""From leaves wherever they are to slices on devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vcjax import tree
from vcjax.streaming.job import widened


def padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A flat array in a shape, with zeros behind it where it is too short."""
    size = int(np.prod(shape))
    if array.size < size:
        longer = np.zeros(size, array.dtype)
        longer[: array.size] = array
        array = longer
    return array.reshape(shape)


class Flat:
    """The elements of a leaf in C order, in parts where its source can.

    Args:
        leaf: read when it is needed.
        kind: dtype of the computation.
    """

    def __init__(self, leaf: tree.Leaf, kind: np.dtype):
        self._leaf, self._kind = leaf, kind
        data = leaf.data
        self._part = data.read_part if isinstance(data, tree.LazyArray) else None
        self._whole: np.ndarray | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some elements."""
        if self._part is not None:
            return widened(self._part(start, stop), self._kind)
        if self._whole is None:
            self._whole = np.asarray(self._leaf.data).reshape(-1)
        return widened(self._whole[start:stop], self._kind)


class Placing:
    """Where arrays go: one device, or spread over all of them."""

    def __init__(self, devices: Sequence[Any] | None):
        if devices is None:
            local = jax.local_devices()
            devices = local if local[0].platform != "cpu" else local[:1]
        self._devices = list(devices)
        self._mesh = Mesh(np.array(self._devices), ("merge",)) if len(self._devices) > 1 else None

    @property
    def must_wait(self) -> bool:
        """Whether a program must end before the next begins.

        On several CPU devices two programs that both talk between devices may take the
        threads that the other needs, and wait for ever.
        """
        return self._mesh is not None and self._devices[0].platform == "cpu"

    def slice(self, array: np.ndarray) -> jax.Array:
        """A slice, spread along its first axis."""
        return jax.device_put(array, self._sharding(array.shape))

    def leaf(self, leaf: tree.Leaf, kind: np.dtype) -> jax.Array:
        """A whole leaf, spread along the first axis that can be."""
        array = widened(np.asarray(leaf.data), kind)
        return jax.device_put(array, self._sharding(array.shape))

    def _sharding(self, shape: tuple[int, ...]) -> Any:
        if self._mesh is None:
            return self._devices[0]
        for axis, length in enumerate(shape):
            if length and length % len(self._devices) == 0:
                return NamedSharding(self._mesh, PartitionSpec(*(None,) * axis, "merge"))
        return NamedSharding(self._mesh, PartitionSpec())
