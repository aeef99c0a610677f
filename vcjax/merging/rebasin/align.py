"""Git Re-Basin: permuting the hidden units of one model to match another's, before a merge."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree
from scipy import optimize

from vcjax import errors
from vcjax.merging.in_memory import merge
from vcjax.merging.inputs import RandomKey, Tree, Weights, by_path, has_mean
from vcjax.merging.kernels.linalg import matmul
from vcjax.merging.method import MergeMethod
from vcjax.merging.rebasin.permutations import PermutationSpec
from vcjax.tree import template

Permutations = Mapping[str, Sequence[int] | Int[np.ndarray, " places"]]
"""`{name: int array}`: place `i` takes what was at `permutation[i]`."""


def permute(tree: Tree, spec: PermutationSpec, permutations: Permutations) -> Tree:
    """The tree with its units in another order; it computes what it did.

    Args:
        tree: a model.
        spec: which axes the permutations move.
        permutations: `{name: int array}`, place `i` takes what was at
            `permutation[i]`; those left out move nothing.

    Example:
        >>> import numpy as np
        >>> from vcjax import merging
        >>> tree = {"in": np.ones((1, 2)) * [5, 7], "out": np.array([[1.0], [2.0]])}
        >>> spec = merging.PermutationSpec.of(tree, {"in": (None, "h"), "out": ("h", None)})
        >>> merging.permute(tree, spec, {"h": [1, 0]})["in"].tolist()
        [[7.0, 5.0]]
    """
    spec.check(tree)
    for name, permutation in permutations.items():
        size = spec.sizes.get(name)
        if size is None or sorted(np.asarray(permutation).tolist()) != list(range(size)):
            raise errors.MergeError(
                f"no permutation of {size} places is given for {name!r}"
                if size is not None
                else f"the spec has no permutation {name!r}",
                hint=f"it has {', '.join(map(repr, spec.sizes))}",
            )

    parts = template(tree)
    moved = {
        path: _moved(leaf, spec, path, permutations) if path in spec.axes else leaf
        for path, leaf in parts.targets.items()
    }
    return parts.build(moved)


def _moved(
    leaf: PyTree,
    spec: PermutationSpec,
    path: str,
    permutations: Permutations,
    but: int | None = None,
) -> Any:
    """A leaf with its units in another order, except those of one part."""
    parts = spec.parts(path)
    shape = np.shape(leaf)
    wide = leaf.reshape([part.size for part in parts])
    for axis, part in enumerate(parts):
        if axis != but and part.name is not None and part.name in permutations:
            wide = wide.take(np.asarray(permutations[part.name]), axis=axis)
    return wide.reshape(shape) if but is None else wide


def match_weights(
    reference: Tree, tree: Tree, spec: PermutationSpec, *, sweeps: int = 100, seed: int = 0
) -> dict[str, np.ndarray]:
    r"""The permutations of a model that bring its weights nearest to another's.

    Coordinate descent on :math:`\max_P \langle w_a, P(w_b) \rangle`: each permutation
    in turn, in random order, is the solution of a linear assignment problem while
    the others are fixed, until none changes. A local optimum.

    Source: Ainsworth et al., 2023 (Git Re-Basin, arXiv 2209.04836), §3.2, Algorithm 1.
    Products are taken on the device, assignments solved on the host.

    Args:
        reference: the model to match.
        tree: the model whose units are to be permuted.
        spec: see `permutation_spec`.
        sweeps: at most so many rounds over all permutations.
        seed: of their order.

    Returns:
        `{name: int array}` for `permute`.

    Example:
        >>> import numpy as np
        >>> from vcjax import merging
        >>> a = {"in": np.array([[1.0, 2.0, 4.0]]), "out": np.array([[3.0], [1.0], [0.5]])}
        >>> spec = merging.PermutationSpec.of(a, {"in": (None, "h"), "out": ("h", None)})
        >>> b = merging.permute(a, spec, {"h": [2, 0, 1]})
        >>> merging.match_weights(a, b, spec)["h"].tolist()
        [1, 2, 0]
    """
    spec.check(reference)
    spec.check(tree)
    ours, theirs = ({p: _number(x) for p, x in by_path(t).items()} for t in (reference, tree))
    found = {name: np.arange(size) for name, size in spec.sizes.items()}
    random = np.random.default_rng(seed)
    for _ in range(sweeps):
        changed = False
        for name in random.permutation(sorted(found)):
            table = np.zeros((spec.sizes[name],) * 2)
            for path, at in spec.places(name):
                if path in theirs and theirs[path] is not None:
                    a = _moved(ours[path], spec, path, {}, at)
                    b = _moved(theirs[path], spec, path, found, at)
                    table += np.asarray(_products(a, b, at), np.float64)
            if not np.isfinite(table).all():
                raise errors.MergeError(
                    f"the weights that {name!r} permutes are not all finite",
                    hint="units with NaN cannot be matched",
                )
            rows, best = optimize.linear_sum_assignment(table, maximize=True)
            gain = table[rows, best].sum() - table[rows, found[name]].sum()
            # Products are rounded to float32: a gain below that is none.
            if gain > 1e-6 * np.abs(table).max(initial=0):
                found[name], changed = best, True
        if not changed:
            break
    return found


def _number(leaf: PyTree) -> Float[Array, "..."] | None:
    """A leaf to be matched: floating point as float32; None for others."""
    return jnp.asarray(leaf, jnp.float32) if has_mean(leaf) else None


def _products(
    a: Float[Array, "..."], b: Float[Array, "..."], axis: int
) -> Float[Array, "places places"]:
    """Inner products of all units of one leaf with all of another."""
    left, right = (jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (a, b))
    return matmul(left, right.T)


def align(
    trees: Sequence[Tree], spec: PermutationSpec, *, sweeps: int = 100, seed: int = 0
) -> list[Tree]:
    """Permutes models so that their weights match; the first stays as it is.

    More than two models are matched in turn with the mean of all others until none
    changes (MergeMany); the first is fixed, as permuting all alike changes nothing.

    Source: Ainsworth et al., 2023 (arXiv 2209.04836), Algorithms 1 and 3.

    Args:
        trees: models of one architecture.
        spec: see `permutation_spec`.
        sweeps: at most so many rounds of either kind.
        seed: of the order of permutations.
    """
    first, *rest = trees
    aligned = [
        permute(t, spec, match_weights(first, t, spec, sweeps=sweeps, seed=seed)) for t in rest
    ]
    identity = {name: np.arange(size) for name, size in spec.sizes.items()}
    for _ in range(sweeps if len(rest) > 1 else 0):
        changed = False
        for i, tree in enumerate(aligned):
            others = merge([first, *aligned[:i], *aligned[i + 1 :]])
            found = match_weights(others, tree, spec, sweeps=sweeps, seed=seed)
            if any((found[name] != identity[name]).any() for name in identity):
                aligned[i], changed = permute(tree, spec, found), True
        if not changed:
            break
    return [first, *aligned]


def git_rebasin(
    trees: Sequence[Tree],
    spec: PermutationSpec,
    method: MergeMethod | None = None,
    weights: Weights | None = None,
    key: RandomKey | None = None,
    *,
    sweeps: int = 100,
    seed: int = 0,
    dtype: DTypeLike | None = None,
) -> Tree:
    """Matches the units of models that were trained apart, and then merges them.

    Source: Ainsworth et al., 2023 (Git Re-Basin, arXiv 2209.04836).

    Args:
        trees: models of one architecture, from different initial weights.
        spec: which permutations leave a model the same; see `permutation_spec`,
            `chain_spec` and `PermutationSpec.of`.
        method: of the merge afterwards; the mean by default.
        weights: as in `merge`.
        key: as in `merge`.
        sweeps: see `align`.
        seed: see `align`.
        dtype: as in `merge`.

    Example:
        >>> import numpy as np
        >>> from vcjax import merging
        >>> a = {"in": np.array([[1.0, 2.0]], "f"), "out": np.array([[3.0], [1.0]], "f")}
        >>> spec = merging.PermutationSpec.of(a, {"in": (None, "h"), "out": ("h", None)})
        >>> b = merging.permute(a, spec, {"h": [1, 0]})
        >>> merging.git_rebasin([a, b], spec)["in"].tolist()
        [[1.0, 2.0]]
    """
    aligned = align(trees, spec, sweeps=sweeps, seed=seed)
    return merge(aligned, method, weights=weights, key=key, dtype=dtype)
