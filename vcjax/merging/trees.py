"""`merge`: N PyTrees to one, leaf by leaf, by a merge method."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from vcjax.merging.counter import leaf_seed, path_words
from vcjax.merging.elementwise import average
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
)
from vcjax.merging.method import MergeMethod, Stack
from vcjax.merging.run import run


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
