"""`merge`: N PyTrees to one, leaf by leaf, by a merge method."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vcjax.errors import MergeError
from vcjax.merging.inputs import (
    RandomKey,
    Tree,
    Weights,
    as_key,
    check_complex,
    check_count,
    check_globs,
    check_inputs,
    check_needs,
    has_mean,
    is_wide,
    leaf_statistics,
    leaf_view,
    leaf_weights,
    matched,
    shape_of,
    statistics_by_path,
)
from vcjax.merging.kernels.random_bits import leaf_seed, path_words
from vcjax.merging.method import MergeMethod, Stack
from vcjax.merging.recipes.average import average
from vcjax.merging.run import finish_leaf, fold_leaf, run, start_fold
from vcjax.tree import template

WeightsInTurn = Iterable[float] | Mapping[str, Sequence[float]]
"""One number per model, in turn, or `{leaf path glob: [N]}`."""


def merge(
    trees: Sequence[Tree],
    method: MergeMethod | None = None,
    base: Tree = None,
    weights: Weights | None = None,
    statistics: Sequence[Tree] | None = None,
    key: RandomKey | None = None,
    *,
    dtype: DTypeLike | None = None,
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
    weights: Weights | None,
    statistics: Sequence[Tree] | None,
    key: RandomKey | None,
    dtype: DTypeLike | None,
) -> Tree:
    """`merge`, with as many bits as JAX is told to use."""
    if base is not None and method.models == (2, 2) and not method.needs_base and len(trees) == 1:
        trees, base = [base, *trees], None  # mergekit's form: the base is the first of two
    if not trees:
        raise MergeError("there is no model to merge", hint="give at least one")
    check_inputs(method, len(trees), base is not None, weights, statistics, key)
    like = template(trees[0])
    first = like.targets
    models = [matched(first, tree, f"model {number}") for number, tree in enumerate(trees, start=1)]
    bases = None if base is None else matched(first, base, "the base")
    stacks = stacks_of(method, models, bases, weights, statistics, key)
    groups: dict[int, tuple[MergeMethod, dict[str, Stack]]] = {}
    for path, stack in stacks.items():
        leaf_method = method.for_leaf(path)
        groups.setdefault(id(leaf_method), (leaf_method, {}))[1][path] = stack
    out = dict(first)
    for leaf_method, members in groups.values():
        results = run(leaf_method, list(members.values()), dtype)
        out.update(zip(members, results, strict=True))
    return like.build(out)


def stacks_of(
    method: MergeMethod,
    models: Sequence[Mapping[str, object]],
    base: Mapping[str, object] | None,
    weights: Weights | None,
    statistics: Sequence[Tree] | None,
    key: RandomKey | None,
) -> dict[str, Stack]:
    """`{leaf path: stack}` of the leaves that have a mean.

    Args:
        method: of the merge, maybe with rules.
        models: `{leaf path: leaf}` each, which are alike.
        base: the same of the base model, if there is one.
        weights: as in `merge`.
        statistics: as in `merge`.
        key: as in `merge`.
    """
    paths = list(models[0])
    check_globs(method, weights, paths)
    numbers = statistics_by_path(statistics, paths)
    root = None if key is None else as_key(key)
    stacks = {}
    for path, leaf in models[0].items():
        own = method.for_leaf(path)
        if not has_mean(leaf):
            continue
        column = [model[path] for model in models]
        check_complex(own, path, column)
        said = leaf_statistics(numbers, path)
        stacks[path] = Stack(
            values=tuple(map(jnp.asarray, column)),
            base=None if base is None else jnp.asarray(base[path]),
            weights=leaf_weights(weights, path, len(models)),
            statistics=None if said is None else tuple(map(jnp.asarray, said)),
            seed=None if root is None else leaf_seed(root, path_words(path)),
            view=leaf_view(own, path, shape_of(leaf)),
        )
    return stacks


def fold(
    trees: Iterable[Tree],
    method: MergeMethod,
    base: Tree = None,
    weights: WeightsInTurn | None = None,
    key: RandomKey | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Tree:
    """The same as `merge`, for methods with `method.foldable`, one model after the other.

    Only one model, the base and the accumulators (in float32; two for sums, four
    for sign elections) are in memory. The merged tree agrees with `merge` to the
    last bit of the same sums in the same order.

    Args:
        trees: models, for example a generator that loads them.
        method: with a reduction that folds, and only per-model steps before it.
        base: as in `merge`.
        weights: one per model, an iterable as long as `trees`, or
            `{leaf path glob: [N]}`; 1 each by default.
        key: as in `merge`.
        dtype: as in `merge`.

    Raises:
        MergeError: the method cannot be folded, or needs what was not given.

    Example:
        >>> from vcjax import merging
        >>> merging.fold(({"w": float(i)} for i in range(5)), merging.average())["w"].item()
        2.0
    """
    if not method.foldable:
        raise MergeError(f"{method.name} needs all models at once", hint="merge them with `merge`")
    check_needs(method, base is not None, weights, None, key)
    given = _Turns(weights)
    like, ground, states, count = None, None, {}, 0
    for tree in trees:
        if like is None:
            like = template(tree)
            ground = None if base is None else matched(like.targets, base, "the base")
        one = matched(like.targets, tree, f"model {count + 1}")
        for path, stack in stacks_of(method, [one], ground, given.next(), None, key).items():
            steps = method.for_leaf(path).transforms
            stack = replace(stack, model=jnp.int32(count))
            if path not in states:
                states[path] = start_fold(steps, stack)
            states[path] = fold_leaf(steps, states[path], stack)
        count += 1
    if like is None:
        raise MergeError("there is no model to merge", hint="give at least one")
    check_count(method, count)
    given.check_all_used()
    out = dict(like.targets)
    for path, state in states.items():
        kind = np.dtype(dtype or jnp.asarray(out[path]).dtype)
        base_leaf = None if ground is None else jnp.asarray(ground[path])
        out[path] = finish_leaf(method.for_leaf(path).transforms, state, base_leaf, dtype=kind)
    return like.build(out)


class _Turns:
    """Weights of models that come one after the other."""

    def __init__(self, weights: WeightsInTurn | None):
        self._by_path: Mapping[str, Sequence[float]] = {}
        self._queue: Iterator[float] | None = None
        self._used = 0
        if isinstance(weights, Mapping):
            self._by_path = {str(glob): numbers for glob, numbers in weights.items()}
        elif weights is not None:
            self._queue = iter(weights)

    def next(self) -> Weights | None:
        """Those of the next model, as of a merge of it alone.

        Raises:
            MergeError: there are none left.
        """
        self._used += 1
        if self._queue is not None:
            one = list(itertools.islice(self._queue, 1))
            return one if one else self._refuse(f"more models than the {self._used - 1} weights")
        if any(len(numbers) < self._used for numbers in self._by_path.values()):
            self._refuse(f"more models than the {self._used - 1} weights")
        by_path = {glob: x[self._used - 1 : self._used] for glob, x in self._by_path.items()}
        return by_path or None

    def check_all_used(self) -> None:
        """Raises if there are weights left.

        Raises:
            MergeError: there are.
        """
        more = self._queue is not None and next(self._queue, None) is not None
        if more or any(len(x) > self._used for x in self._by_path.values()):
            self._refuse(f"more weights than the {self._used} models")

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise MergeError(f"there are {what}", hint="give one weight per model")
