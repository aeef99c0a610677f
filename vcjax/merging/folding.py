"""Merging one model at a time, so that N may be hundreds in the memory of a few."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcjax import errors
from vcjax.merging.counter import leaf_seed, path_words
from vcjax.merging.inputs import (
    aligned,
    as_key,
    check_complex,
    is_mergeable,
    leaf_weights,
    matched,
)
from vcjax.merging.method import MergeMethod, Stack
from vcjax.merging.run import finish_leaf, fold_leaf, start_fold


def fold(
    trees: Iterable[Any],
    method: MergeMethod,
    base: Any = None,
    weights: Any = None,
    key: Any = None,
    *,
    dtype: Any = None,
) -> Any:
    """The same as `merge`, for methods with `method.foldable`, one model after the other.

    Only one model, the base and the accumulators (in float32; two for sums, four
    for sign elections) are in memory. The merged tree agrees with `merge` to the
    last bit of the same sums in the same order.

    Args:
        trees: models, for example a generator that loads them.
        method: with a reduction that folds, and only per-model steps before it.
        base: as in `merge`.
        weights: one per model, an iterable as long as `trees`; 1 each by default.
        key: as in `merge`.
        dtype: as in `merge`.

    Raises:
        MergeError: the method cannot be folded, or needs what was not given.

    Example:
        >>> from vcjax import merging
        >>> merging.fold(({"w": float(i)} for i in range(5)), merging.average())["w"].item()
        2.0
    """
    if not method.foldable or method.rules:
        raise errors.MergeError(
            f"{method.name} needs all models at once", hint="merge them with `merge`"
        )
    if method.needs_base and base is None:
        raise errors.MergeError(f"{method.name} needs the base model", hint="give base=")
    if method.random and key is None:
        raise errors.MergeError(f"{method.name} draws random numbers", hint="give key=, e.g. key=0")
    root = None if key is None else as_key(key)
    queue = None if weights is None else iter(weights)
    paths, columns, treedef, bases, states = [], [], None, [], {}
    number = -1
    for number, tree in enumerate(trees):
        if number == 0:
            paths, columns, treedef = aligned([tree])
            bases = [None] * len(paths)
            if base is not None:
                bases = matched(paths, columns, base, "the base")
        weight = 1.0 if queue is None else next(queue)
        leaves = matched(paths, columns, tree, f"model {number + 1}")
        for i, path in enumerate(paths):
            if not is_mergeable(columns[i][0]):
                continue
            check_complex(method, path, [leaves[i]])
            stack = Stack(
                values=(jnp.asarray(leaves[i]),),
                base=None if bases[i] is None else jnp.asarray(bases[i]),
                weights=leaf_weights([weight], path, 1),
                seed=None if root is None else leaf_seed(root, path_words(path)),
                model=jnp.int32(number),
            )
            if i not in states:
                states[i] = start_fold(method.transforms, stack)
            states[i] = fold_leaf(method.transforms, states[i], stack)
    if number < 0:
        raise errors.MergeError("there is no model to merge", hint="give at least one")
    if method.models[0] > number + 1:
        raise errors.MergeError(f"{method.name} takes at least {method.models[0]} models")
    out = [column[0] for column in columns]
    for i, state in states.items():
        kind = np.dtype(dtype or jnp.asarray(columns[i][0]).dtype)
        grounds = None if bases[i] is None else jnp.asarray(bases[i])
        out[i] = finish_leaf(method.transforms, state, grounds, dtype=kind)
    assert treedef is not None
    return jax.tree_util.tree_unflatten(treedef, out)
