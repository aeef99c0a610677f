"""WUDI: the merged task matrix that interferes least with each task."""

import jax.numpy as jnp

from vcjax import errors
from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import (
    conjugate_gradients,
    matmul,
    solve_towards,
    total,
    transpose,
)
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, scale_by, task_vectors
from vcjax.merging.steps.matrix import matrices, mean_vector, restored


@transform("damping", "rtol")
def least_interference(
    iterations: int | None = None, damping: float = 1e-4, rtol: float = 1e-5
) -> Transform:
    """The task matrix that interferes least with all tasks; see `wudi`."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
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
    scale: Coefficient = 1.0,
    iterations: int | None = None,
    damping: float = 1e-4,
    rtol: float = 1e-5,
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
