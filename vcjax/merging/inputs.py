"""Taking N trees apart side by side, and checking that they can be merged."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vcjax import errors
from vcjax.errors import MergeError
from vcjax.merging.method import MergeMethod
from vcjax.merging.view import View, derived
from vcjax.tree.globs import matches, pattern

Tree = Any

NO_JAX_ARRAYS = frozenset(["float6_e2m3fn", "float6_e3m2fn"])
"""Dtypes that `jax.numpy` names, and XLA cannot compute with (jaxlib 0.10)."""


def is_mergeable(leaf: Any) -> bool:
    """Whether a leaf is of floating point or complex numbers."""
    if isinstance(leaf, (bool, int, str, bytes)):
        return False
    kind = getattr(leaf, "dtype", None)
    if kind is None:
        return isinstance(leaf, (float, complex))
    return jnp.issubdtype(kind, jnp.inexact)


def path_of(keys: Any) -> str:
    """The leaf path of JAX's key path."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def by_path(tree: Tree) -> dict[str, Any]:
    """`{leaf path: leaf}` of a tree, or of a dict that already is that.

    Raises:
        TreeError: two leaves have the same path.
    """
    leaves: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = path_of(keys)
        if path in leaves:
            raise errors.TreeError(
                f"two leaves have the path {path!r}",
                path=path,
                hint="rename one: a merge tells leaves apart by their paths",
            )
        leaves[path] = leaf
    return leaves


def is_wide(leaf: Any) -> bool:
    """Whether JAX without x64 would cut a leaf's numbers to 32 bits."""
    return getattr(leaf, "dtype", None) in (np.float64, np.complex128)


def aligned(trees: list[Tree]) -> tuple[list[str], list[list[Any]], Any]:
    """Leaf paths, per path the N leaves, and the structure of the first tree."""
    first, treedef = by_path(trees[0]), jax.tree.structure(trees[0])
    paths = list(first)
    columns = [[leaf] for leaf in first.values()]
    for number, tree in enumerate(trees[1:], start=2):
        for column, leaf in zip(
            columns, matched(paths, columns, tree, f"model {number}"), strict=True
        ):
            column.append(leaf)
    for path, column in zip(paths, columns, strict=True):
        check_dtypes(path, column)
    return paths, columns, treedef


def check_dtypes(path: str, leaves: list[Any]) -> None:
    """Raises if leaves are of floating point numbers that JAX has no arrays of (float6)."""
    for leaf in leaves:
        kind = getattr(leaf, "dtype", None)
        if kind is not None and str(kind) in NO_JAX_ARRAYS:
            raise errors.MergeError(
                f"{path!r} is of {kind}, of which JAX has no arrays",
                hint="merge it in float32, `x.astype(numpy.float32)`, and round the result",
                path=path,
            )


def against(paths: list[str], columns: list[list[Any]], base: Tree) -> list[Any]:
    """The leaves of the base, checked against the first model."""
    leaves = matched(paths, columns, base, "the base")
    for path, leaf in zip(paths, leaves, strict=True):
        check_dtypes(path, [leaf])
    return leaves


def matched(paths: list[str], columns: list[list[Any]], tree: Tree, who: str) -> list[Any]:
    """The leaves of a tree in the order of `paths`.

    Raises:
        StructureError: leaves are missing, left over or of another shape.
    """
    leaves = by_path(tree)
    problems = [f"{path}: not in {who}" for path in paths if path not in leaves]
    problems += [f"{path}: in {who} only" for path in leaves if path not in set(paths)]
    for path, column in zip(paths, columns, strict=True):
        if path in leaves and (a := np.shape(column[0])) != (b := np.shape(leaves[path])):
            problems.append(f"{path}: {list(a)} in model 1, {list(b)} in {who}")
        elif path in leaves and is_mergeable(column[0]) != is_mergeable(leaves[path]):
            problems.append(f"{path}: floating point in only one of model 1 and {who}")
    if problems:
        raise errors.StructureError(
            f"model 1 and {who} cannot be merged leaf by leaf",
            problems=problems,
            hint="merge trees of the same leaf paths and shapes, or select the parts they share",
        )
    return [leaves[path] for path in paths]


def check_inputs(
    method: MergeMethod, n: int, base: bool, weights: Any, statistics: Any, key: Any
) -> None:
    """Raises if the method lacks something, or would ignore what was given."""
    fewest, most = method.models
    if n < fewest or (most is not None and n > most):
        limit = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
        models = "model" if fewest == 1 else "models"
        raise errors.MergeError(f"{method.name} takes {limit} {models}; {n} given")
    if method.needs_base and not base:
        raise errors.MergeError(f"{method.name} needs the base model", hint="give base=")
    if method.random and key is None:
        raise errors.MergeError(f"{method.name} draws random numbers", hint="give key=, e.g. key=0")
    if weights is not None and not method.weighted:
        raise errors.MergeError(f"{method.name} has no weights", hint="leave weights= out")
    if method.statistics and statistics is None:
        kinds = ", ".join(sorted(method.statistics))
        raise errors.MergeError(
            f"{method.name} needs statistics ({kinds})", hint="give statistics="
        )
    if statistics is not None and len(statistics) != n:
        raise errors.MergeError(f"{len(statistics)} statistics for {n} models")


def check_globs(method: MergeMethod, weights: Any, paths: list[str]) -> None:
    """Raises if a rule of a partition, or weights by path, match no leaf."""
    globs = [glob for glob, _ in method.rules if glob != "**"]
    globs += list(weights) if isinstance(weights, Mapping) else []
    for glob in globs:
        if not any(matches(glob, path) for path in paths):
            raise errors.MergeError(
                f"no leaf path matches {glob!r}", hint="`**` crosses `/`, `*` does not"
            )


def check_complex(method: MergeMethod, path: str, column: list[Any]) -> None:
    """Raises if a complex leaf meets a step that orders or elects."""
    if not any(np.iscomplexobj(x) if isinstance(x, complex) else _complex(x) for x in column):
        return
    for step in method.transforms:
        if not step.linear:
            raise errors.MergeError(
                f"{method.name} cannot merge the complex leaf {path!r}: {step.name} needs an order",
                path=path,
                hint="give it another method, e.g. partition({…: average()}, default=…)",
            )


def _complex(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jnp.complexfloating)


def leaf_weights(weights: Any, path: str, n: int) -> jax.Array:
    """The weights of the N models for one leaf."""
    if isinstance(weights, Mapping):
        weights = next((w for glob, w in weights.items() if matches(glob, path)), None)
    if weights is None:
        return jnp.ones(n)
    array = jnp.asarray(weights, dtype=jnp.result_type(float))
    if array.shape != (n,):
        raise errors.MergeError(f"weights of shape {list(array.shape)} for {n} models", path=path)
    return array


def leaf_statistics(numbers: list[dict[str, Any]] | None, path: str) -> tuple[Any, ...] | None:
    """What the statistics say of a leaf, if they speak of it in every model."""
    if numbers is None:
        return None
    found = [n[path] for n in numbers if path in n]
    if found and len(found) != len(numbers):
        raise errors.MergeError(f"statistics of {path!r} are missing in some models", path=path)
    return tuple(jnp.asarray(x) for x in found) or None


def leaf_view(method: MergeMethod, path: str, leaf: Any) -> View | None:
    """The matrix view of a leaf: set by path, or derived from its shape."""
    for glob, view in method.views:
        if matches(glob, path):
            return view.check(path, np.shape(leaf))
    return derived(np.shape(leaf))


def as_key(key: Any) -> jax.Array:
    """A PRNG key from a key or an int."""
    return jax.random.key(key) if isinstance(key, int) else key


def weights_of(weights: Any, path: str, models: int) -> tuple[float, ...]:
    """The weights of the models for one leaf; 1 each where none are given.

    Raises:
        MergeError: there are not as many as models.
    """
    if isinstance(weights, Mapping):
        weights = next((w for glob, w in weights.items() if pattern(glob).match(path)), None)
    if weights is None:
        return (1.0,) * models
    numbers = np.asarray(weights, np.float64)
    if numbers.shape != (models,):
        raise MergeError(f"weights of shape {list(numbers.shape)} for {models} models", path=path)
    return tuple(numbers.tolist())
