"""Methods on the singular vectors of task matrices: TSV-Merge, Iso-C, Iso-CTS, KnOTS, WUDI."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from vcjax import errors
from vcjax.merging.agreement import total
from vcjax.merging.atoms import (
    add_base,
    disjoint_mean,
    elect_sign,
    merged,
    scale_by,
    task_vectors,
    trim,
    weighted_sum,
)
from vcjax.merging.compose import chain
from vcjax.merging.method import MergeMethod, Stack, Transform, checked, recipe, transform
from vcjax.merging.solve import conjugate_gradients, matmul, polar, solve_towards, transpose


def triples(x: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `rank` leading singular triples `[…, m, k], […, k], […, k, n]`."""
    u, s, v = jnp.linalg.svd(x, full_matrices=False)
    return u[..., :rank], s[..., :rank], v[..., :rank, :]


def matrices(stack: Stack) -> list[jax.Array]:
    """The weighted task matrices `[layer, in, out]`."""
    assert stack.view is not None
    return [w * stack.view.matrices(x) for w, x in zip(stack.weights, stack.values, strict=True)]


def restored(stack: Stack, value: jax.Array) -> Stack:
    """The stack after a reduction to matrices."""
    assert stack.view is not None
    return merged(stack, stack.view.restore(value, stack.values[0].shape))


def mean_vector(stack: Stack) -> Stack:
    """What leaves without a matrix view become: the weighted mean of task vectors."""
    mean = total(w * x for w, x in zip(stack.weights, stack.values, strict=True))
    return merged(stack, mean / jnp.sum(stack.weights))


@transform()
def decorrelated_sum() -> Transform:
    """TSV-Merge of task matrices; see `tsv`."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if stack.view is None:
            return mean_vector(stack)
        tasks = matrices(stack)
        rank = min(tasks[0].shape[-2:])
        parts = [triples(x, max(rank // len(tasks), 1)) for x in tasks]
        u = polar(jnp.concatenate([u for u, _, _ in parts], axis=-1))
        s = jnp.concatenate([s for _, s, _ in parts], axis=-1)
        v = polar(jnp.concatenate([v for _, _, v in parts], axis=-2))
        return restored(stack, matmul(u * s[..., None, :], v))

    return Transform(apply, weighted=True)


@recipe
def tsv(scale: Any = 1.0) -> MergeMethod:
    r"""TSV-Merge: the top singular vectors of each task, made orthogonal to each other.

    The r/N leading triples of each task matrix are concatenated, both sides
    replaced by their orthogonal polar factors, and multiplied out:
    :math:`b + λ U_⊥ Σ V_⊥^T`. Leaves that are no matrices get the mean task vector.

    Source: Gargiulo et al., 2025 (arXiv 2412.00081), Algorithm 1.

    Args:
        scale: λ.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, b = {"w": jnp.diag(jnp.array([2.0, 0.0]))}, {"w": jnp.diag(jnp.array([0.0, 3.0]))}
        >>> zero = {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a, b], merging.tsv(), base=zero)["w"].round(4).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    return chain(task_vectors(), decorrelated_sum(), scale_by(scale), add_base())


@transform()
def isotropic_sum() -> Transform:
    """The sum of task matrices with all singular values replaced by their mean."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if stack.view is None:
            return mean_vector(stack)
        summed = total(matrices(stack))
        factor = polar(summed)
        # <U V', U S V'> is the sum of the singular values.
        mean = jnp.sum(factor * summed, axis=(-2, -1), keepdims=True) / min(summed.shape[-2:])
        return restored(stack, mean * factor)

    return Transform(apply, weighted=True)


@recipe
def iso_c(scale: Any = 1.0) -> MergeMethod:
    r"""Iso-C: the summed task matrix with a flat spectrum, :math:`b + λ \barσ UV^T`.

    Directions that no task has (singular value 0) stay 0, where an SVD would fill
    them at random. Leaves that are no matrices get the mean task vector.

    Source: Marczak et al., 2025 (arXiv 2502.04959), §4.1.

    Args:
        scale: λ.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, zero = {"w": jnp.diag(jnp.array([1.0, 3.0]))}, {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a], merging.iso_c(), base=zero)["w"].round(4).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return chain(task_vectors(), isotropic_sum(), scale_by(scale), add_base())


@transform("common")
def isotropic_common_and_task(common: float = 0.8) -> Transform:
    """Iso-CTS of task matrices; see `iso_cts`."""
    checked("common", common, 0, 1)

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if stack.view is None:
            return mean_vector(stack)
        tasks = matrices(stack)
        rank = min(tasks[0].shape[-2:])
        each = round((rank - int(rank * common)) / len(tasks))
        shared = rank - each * len(tasks)
        u, s, v = triples(total(tasks), shared)
        us, ss, vs = [u], [s], [v]
        for task in tasks:
            rest = task - matmul(u, matmul(transpose(u), task))
            for parts, part in zip((us, ss, vs), triples(rest, each), strict=True):
                parts.append(part)
        left = polar(jnp.concatenate(us, axis=-1))
        right = polar(jnp.concatenate(vs, axis=-2))
        mean = jnp.mean(jnp.concatenate(ss, axis=-1), axis=-1)[..., None, None]
        return restored(stack, mean * matmul(left, right))

    return Transform(apply, weighted=True)


@recipe
def iso_cts(scale: Any = 1.0, common: float = 0.8) -> MergeMethod:
    r"""Iso-CTS: a common subspace and task-specific directions, with a flat spectrum.

    The leading directions of the summed task matrix, and of each task matrix
    outside them equally many leading directions, are made orthogonal (polar
    factors) and all given the mean of their singular values.

    Source: Marczak et al., 2025 (arXiv 2502.04959), §4.2, Algorithm 2; numbers of
    directions as the official code.

    Args:
        scale: λ.
        common: share of the directions that are common.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, zero = {"w": jnp.diag(jnp.array([1.0, 3.0]))}, {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a], merging.iso_cts(), base=zero)["w"].round(4).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return chain(task_vectors(), isotropic_common_and_task(common), scale_by(scale), add_base())


@transform("density", "cut")
def in_shared_space(
    density: Any = 1.0, elect: bool = True, normalize: bool = True, cut: float = 1e-5
) -> Transform:
    """Merges task matrices by their parts of one joint SVD; see `knots`."""
    checked("density", density, 0, 1)
    steps: list[Transform] = [trim(density)]
    steps += [elect_sign(), disjoint_mean(normalize)] if elect else [weighted_sum(normalize)]

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if stack.view is None:
            inner = stack
            for step in steps:
                inner = step.apply(inner, ())
            return merged(stack, inner.values[0])
        tasks = [stack.view.matrices(x) for x in stack.values]
        u, s, v = jnp.linalg.svd(jnp.concatenate(tasks, axis=-2), full_matrices=False)
        live = s > cut * s[..., :1]
        blocks = jnp.split(jnp.where(live[..., None, :], u, 0), len(tasks), axis=-2)
        inner = replace(stack, values=tuple(blocks))
        for step in steps:
            inner = step.apply(inner, ())
        spectrum = jnp.where(live, s, 0)[..., None, :]
        return restored(stack, matmul(inner.values[0] * spectrum, v))

    return Transform(apply, weighted=True)


@recipe
def knots(
    density: Any = 0.2,
    scale: Any = 1.0,
    elect: bool = True,
    normalize: bool = True,
    cut: float = 1e-5,
) -> MergeMethod:
    r"""KnOTS: align task matrices by a joint SVD, then merge as TIES (or on average).

    The task matrices `[in, out]`, one below the other, are
    :math:`[V_1; …; V_N] Σ U^T`; the blocks :math:`V_i` are merged, and the result is
    multiplied back. Made for LoRA updates, whose entries do not line up. Leaves
    that are no matrices are merged as they are.

    Source: Stoica et al., 2025 (arXiv 2410.19735), §4.

    Args:
        density: fraction of each block that is kept.
        scale: λ.
        elect: elect signs (KnOTS-TIES); False: weighted mean of the blocks.
        normalize: divide by the weights (that agree).
        cut: singular values below this share of the largest are left out.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, zero = {"w": jnp.diag(jnp.array([1.0, 3.0]))}, {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a, a], merging.knots(1.0), base=zero)["w"].round(4).tolist()
        [[1.0, 0.0], [0.0, 3.0]]
    """
    inner = in_shared_space(density, elect, normalize, cut)
    return chain(task_vectors(), inner, scale_by(scale), add_base())


@transform("damping", "rtol")
def least_interference(
    iterations: int | None = None, damping: float = 1e-4, rtol: float = 1e-5
) -> Transform:
    """The task matrix that interferes least with all tasks; see `wudi`."""

    def apply(stack: Stack, totals: tuple[Any, ...] = ()) -> Stack:
        if stack.view is None:
            return mean_vector(stack)
        tasks = matrices(stack)
        grams = []
        for task in tasks:
            energy = jnp.sum(task * task, axis=(-2, -1), keepdims=True)
            live = energy > 0
            grams.append(matmul(task, transpose(task)) / jnp.where(live, energy, 1))
        left = total(grams)
        right = total(matmul(g, x) for g, x in zip(grams, tasks, strict=True))
        start = total(tasks)
        if iterations is None:
            solved = solve_towards(left, right, start, damping)
        else:
            solved = conjugate_gradients(lambda x: matmul(left, x), right, start, iterations, rtol)
        return restored(stack, solved)

    return Transform(apply, weighted=True)


@recipe
def wudi(
    scale: Any = 1.0, iterations: int | None = None, damping: float = 1e-4, rtol: float = 1e-5
) -> MergeMethod:
    r"""WUDI: the task matrix that interferes least with each task's own row space.

    Minimises :math:`\sum_i |τ_i^T (τ - τ_i)|^2 / |τ_i|^2` (τ as `[in, out]`), which
    is a linear system with :math:`G_i = τ_i τ_i^T / |τ_i|^2`, solved near
    :math:`\sum τ_i`. The official code takes 300 Adam steps from there and ends
    before the minimum; `iterations` ends early too. Leaves that are no matrices get
    the mean task vector.

    Source: Cheng et al., 2025 (arXiv 2503.08099), §3.3.

    Args:
        scale: λ.
        iterations: conjugate gradient steps; None solves directly.
        damping: of the direct solution, towards the sum.
        rtol: stop the iteration when the residual is below this share.

    Example:
        >>> from vcjax import merging
        >>> import jax.numpy as jnp
        >>> a, b = {"w": jnp.diag(jnp.array([2.0, 0.0]))}, {"w": jnp.diag(jnp.array([0.0, 3.0]))}
        >>> zero = {"w": jnp.zeros((2, 2))}
        >>> merging.merge([a, b], merging.wudi(), base=zero)["w"].round(4).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    if iterations is not None and iterations < 1:
        raise errors.MergeError(f"iterations={iterations}", hint="None solves directly")
    return chain(
        task_vectors(), least_interference(iterations, damping, rtol), scale_by(scale), add_base()
    )
