"""Which axes of a leaf are layers, inputs and outputs, for methods that need a matrix."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vcjax import errors


class View(NamedTuple):
    """The axes of a leaf as a matrix `[in, out]`, or a stack of them `[layer, in, out]`.

    A Flax `Dense` kernel is `View((0,), (1,))`, a `Conv` kernel
    `View((0, 1, 2), (3,))`, a kernel under `nn.scan` `View((1,), (2,), (0,))`,
    and a PyTorch linear weight `[out, in]` is `View((1,), (0,))`.

    Attributes:
        inputs: axes that are summed over when the layer is applied.
        outputs: axes that the layer produces.
        layers: axes that only stack layers.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layers: tuple[int, ...] = ()

    def matrices(self, leaf: jax.Array) -> jax.Array:
        """The leaf as `[layers, in, out]`."""
        order = (*self.layers, *self.inputs, *self.outputs)
        shape = [math.prod(leaf.shape[a] for a in axes) for axes in self._groups()]
        return jnp.transpose(leaf, order).reshape(shape)

    def restore(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The leaf of this shape that `matrices` made `[layers, in, out]` of."""
        order = (*self.layers, *self.inputs, *self.outputs)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return jnp.transpose(matrices.reshape([shape[a] for a in order]), inverse)

    def _groups(self) -> tuple[tuple[int, ...], ...]:
        return self.layers, self.inputs, self.outputs

    def check(self, path: str, shape: tuple[int, ...]) -> "View":
        """This view with axes counted from 0.

        Raises:
            MergeError: the axes are not those of a leaf of this shape.
        """
        rank = len(shape)
        groups = [tuple(a % rank if -rank <= a < rank else a for a in g) for g in self._groups()]
        if sorted(a for g in groups for a in g) != list(range(rank)):
            raise errors.MergeError(
                f"{self} does not name each axis of {path!r} {list(shape)} once",
                path=path,
                hint="View(inputs, outputs, layers), axes counted from 0",
            )
        layers, inputs, outputs = groups
        return View(inputs, outputs, layers)


def derived(shape: tuple[int, ...]) -> View | None:
    """The view of a leaf in Flax's conventions: kernels are `[..., in, out]`.

    Leaves of two axes and more are matrices whose last axis is the output, as in
    `Dense` and `Conv`; vectors and scalars (biases, scales) have no view. Stacked
    layers and `DenseGeneral` kernels cannot be told from convolutions by their
    shape: set their views by path (`view_as`).
    """
    if len(shape) < 2 or 0 in shape:
        return None
    last = len(shape) - 1
    return View(tuple(range(last)), (last,))
