"""`merge`: N PyTrees to one, leaf by leaf, by a merge method."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from vcjax import errors
from vcjax.merging.inputs import (
    Tree,
    against,
    aligned,
    as_key,
    by_path,
    check_complex,
    check_globs,
    check_inputs,
    is_mergeable,
    is_wide,
    leaf_statistics,
    leaf_view,
    leaf_weights,
    matched,
)
from vcjax.merging.kernels.random_bits import leaf_seed, path_words
from vcjax.merging.method import MergeMethod, Stack
from vcjax.merging.recipes.average import average
from vcjax.merging.run import finish_leaf, fold_leaf, run, start_fold


def merge(
    trees: Sequence[Tree],
    method: MergeMethod | None = None,
    base: Tree = None,
    weights: Any = None,
    statistics: Sequence[Any] | None = None,
    key: Any = None,
    *,
    dtype: Any = None,
) -> Tree:
    """Merges PyTrees of the same structure and shapes. Pure; may be jitted and vmapped.

    Floating point and complex leaves are merged: computed in float32 (float64 if
    any input is, also while `jax_enable_x64` is off, unless under `jit`, where JAX
    cuts them to 32 bits itself), rounded once to the dtype of the first model. All other leaves
    (integers, booleans, PRNG keys, strings) are not averaged but taken from the
    first model, as a step counter or a key has no mean. A NaN of any model stays
    a NaN of the result.

    Args:
        trees: N models.
        method: for example `ties(density=0.2)`; the mean by default.
        base: the model that they were fine-tuned from, for methods that need it.
        weights: `[N]`, one per model (1 each by default), or
            `{leaf path glob: [N]}` for weights per leaf.
        statistics: for statistics-weighted methods, one per model: a tree or a
            `{leaf path: array}` (`fisher`), `{leaf path: [in, in]}` (`regmean`).
        key: PRNG key or int, for random methods.
        dtype: of the merged leaves, instead of the first model's.

    Returns:
        A tree like the first model.

    Raises:
        StructureError: trees differ in leaf paths or shapes; each is listed.
        MergeError: the method needs something that was not given, or the reverse.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": 1.0}, {"w": 2.0}, {"w": 4.0}
        >>> merging.merge([a, b], merging.task_arithmetic(scale=0.5), base=base)["w"].item()
        3.0
    """
    method = average() if method is None else method
    trees = list(trees)
    leaves = jax.tree.leaves([trees, base])
    if any(map(is_wide, leaves)) and not any(isinstance(x, jax.core.Tracer) for x in leaves):
        with jax.enable_x64(True):
            return _merge(trees, method, base, weights, statistics, key, dtype)
    return _merge(trees, method, base, weights, statistics, key, dtype)


def _merge(
    trees: list[Tree],
    method: MergeMethod,
    base: Tree,
    weights: Any,
    statistics: Sequence[Any] | None,
    key: Any,
    dtype: Any,
) -> Tree:
    """`merge`, with as many bits as JAX is told to use."""
    if base is not None and method.models == (2, 2) and not method.needs_base and len(trees) == 1:
        trees, base = [base, *trees], None  # mergekit's form: the base is the first of two
    check_inputs(method, len(trees), base is not None, weights, statistics, key)
    paths, columns, treedef = aligned(trees)
    bases = [None] * len(paths) if base is None else against(paths, columns, base)
    numbers = None if statistics is None else [by_path(s) for s in statistics]
    check_globs(method, weights, paths)
    root = None if key is None else as_key(key)

    out: list[Any] = [column[0] for column in columns]
    groups: dict[int, tuple[MergeMethod, list[tuple[int, Stack]]]] = {}
    resolved: dict[str, MergeMethod] = {path: method.for_leaf(path) for path in paths}
    for i, path in enumerate(paths):
        if not is_mergeable(columns[i][0]):
            continue
        leaf_method = resolved[path]
        check_complex(leaf_method, path, columns[i])
        stack = Stack(
            values=tuple(jnp.asarray(x) for x in columns[i]),
            base=None if bases[i] is None else jnp.asarray(bases[i]),
            weights=leaf_weights(weights, path, len(trees)),
            statistics=leaf_statistics(numbers, path),
            seed=None if root is None else leaf_seed(root, path_words(path)),
            view=leaf_view(leaf_method, path, columns[i][0]),
        )
        groups.setdefault(id(leaf_method), (leaf_method, []))[1].append((i, stack))
    for leaf_method, members in groups.values():
        results = run(leaf_method, [stack for _, stack in members], dtype)
        for (i, _), result in zip(members, results, strict=True):
            out[i] = result
    return jax.tree_util.tree_unflatten(treedef, out)


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
