"""AdaMerging: a coefficient per model and layer, learned on data without labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from vcjax import errors
from vcjax.merging.compose import chain, keep, partition
from vcjax.merging.inputs import Tree
from vcjax.merging.makers import recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficients, Totals
from vcjax.merging.steps.basic import add_base, keep_where, mapped, task_vectors
from vcjax.merging.steps.reductions import elect_sign, weighted_sum
from vcjax.merging.steps.trim import trim
from vcjax.merging.tuning.optimise import Optimised, Per, optimise
from vcjax.tree import exactly

ByPath = Coefficients | list[float] | Mapping[str, "ByPath"]
"""One number, `[N]`, or either by leaf path glob."""


@transform()
def scale_models(coefficients: Coefficients) -> Transform:
    """Multiplies the value of each model by its coefficient.

    Args:
        coefficients: `[N]`, or one number for all models.
    """

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        factors, n = jnp.asarray(coefficients), len(stack.values)
        # A fold shows one model at a time, and then any number of coefficients may be right.
        if factors.ndim > 1 or (factors.ndim == 1 and n > 1 and len(factors) != n):
            raise errors.MergeError(
                f"coefficients of shape {list(factors.shape)} for {n} models",
                hint="give one number, or one per model",
            )
        own = [
            factors.at[stack.model + i].get(mode="fill", fill_value=jnp.nan)
            if factors.ndim
            else factors
            for i in range(n)
        ]
        values = zip(own, stack.values, strict=True)
        return mapped(stack, [(factor * x).astype(x.dtype) for factor, x in values])

    return Transform(apply, locality="element", per_model=True, linear=True)


@transform()
def keep_elected() -> Transform:
    """Zeroes the values that do not have the elected sign."""

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        if stack.agree is None:
            return stack
        kept = [keep_where(m, x) for m, x in zip(stack.agree, stack.values, strict=True)]
        return replace(mapped(stack, kept), agree=None)

    return Transform(apply, locality="element")


@recipe
def adamerging(coefficients: ByPath = 0.3, density: Coefficients | None = None) -> MergeMethod:
    r"""AdaMerging's merge: a coefficient per model, and per layer if wished.

    :math:`b^l + \sum_i λ_i^l w_i τ_i^l`; with `density` (AdaMerging++) of task vectors
    trimmed and freed of minority signs as in TIES. `adamerge` learns the coefficients.

    Source: Yang et al., 2024 (arXiv 2310.02575), §3.2, eq. 3 and 4.

    Args:
        coefficients: one number, `[N]`, or `{leaf path glob: number or [N]}`; leaves
            that no glob matches stay the base's.
        density: fraction of each task vector that AdaMerging++ keeps (.2).

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": 0.0, "u": 0.0}, {"w": 1.0, "u": 1.0}, {"w": 2.0, "u": 3.0}
        >>> method = merging.adamerging({"w": [1.0, 0.5], "u": [0.0, 1.0]})
        >>> merging.merge([a, b], method, base=base)
        {'u': Array(3., dtype=float32), 'w': Array(2., dtype=float32)}
    """
    if isinstance(coefficients, Mapping):
        rules = {glob: adamerging(values, density) for glob, values in coefficients.items()}
        return partition(rules, default=keep())
    if isinstance(coefficients, (tuple, list)):
        coefficients = jnp.asarray(coefficients)
    trimmed = () if density is None else (trim(density), elect_sign(), keep_elected())
    return chain(task_vectors(), *trimmed, scale_models(coefficients), weighted_sum(), add_base())


def entropy(logits: Float[Array, "... classes"]) -> Float[Array, ""]:
    r"""Mean Shannon entropy :math:`-\sum_c p_c \log p_c` (nats) of predictions `[…, classes]`.

    Low where a classifier is sure, so it stands in for the loss where there are no
    labels.

    Example:
        >>> import jax.numpy as jnp
        >>> from vcjax import merging
        >>> round(float(merging.entropy(jnp.zeros((5, 10)))), 4)  # log 10
        2.3026
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))


Predict = Callable[[Tree, PyTree], Float[Array, "n classes"]]


def adamerge(
    trees: Sequence[Tree],
    base: Tree,
    predict: Predict | Sequence[Predict],
    batches: Iterable[Sequence[PyTree]],
    *,
    per: Per = "leaf",
    start: float = 0.3,
    density: float | None = None,
    steps: int = 500,
    learning_rate: float = 1e-3,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Optimised:
    r"""Learns AdaMerging's coefficients by minimising entropy on inputs without labels.

    Each step takes one batch of inputs per task, merges, and moves the coefficients
    along the gradient, through the merge, of :math:`\sum_t H(f(x_t))` by Adam.

    Source: Yang et al., 2024 (arXiv 2310.02575), §3.2, Algorithm 1; defaults and bounds
    as the official code. For another loss, call `optimise` with `adamerging`.

    Args:
        trees: N models, fine-tuned from `base`.
        base: the model that they come from.
        predict: `(tree, inputs) -> logits [n, classes]`, or one such function per task.
        batches: per step a sequence with the inputs of each task, always of the same
            shapes. Learning ends early where they do.
        per: a coefficient per "model" (task-wise), "leaf" (the official layer-wise) or
            "layer" (the leaves of one module together).
        start: of all coefficients.
        density: trims task vectors (AdaMerging++, .2).
        steps: at most so many.
        learning_rate: of Adam.
        bounds: coefficients are clipped to them after every step.

    Returns:
        An `Optimised` whose method is `adamerging` with what was learned.

    Example:
        >>> import jax.numpy as jnp
        >>> from vcjax import merging
        >>> base, a = {"w": jnp.zeros((2, 3))}, {"w": jnp.eye(2, 3)}
        >>> found = merging.adamerge(
        ...     [a], base, lambda tree, x: x @ tree["w"], [[jnp.eye(2)]] * 20, learning_rate=0.01
        ... )
        >>> bool(found.losses[-1] < found.losses[0])
        True
    """

    def loss(tree: Tree, batch: Sequence[PyTree]) -> jax.Array:
        own = [predict] * len(batch) if callable(predict) else predict
        return sum(
            (entropy(call(tree, inputs)) for call, inputs in zip(own, batch, strict=True)),
            start=jnp.zeros(()),
        )

    def method(coefficients: ByPath) -> MergeMethod:
        return adamerging(coefficients, density)

    found = optimise(
        method,
        {"coefficients": np.full(len(trees), start, np.float32)},
        loss,
        trees,
        base,
        per=per,
        data=batches,
        steps=steps,
        optimizer=optax.adam(learning_rate),
        bounds=bounds,
    )
    values = found.coefficients["coefficients"]
    learned = (
        {exactly(path): row.tolist() for path, row in values.items()}
        if isinstance(values, Mapping)
        else values.tolist()
    )
    return replace(found, method=adamerging(learned, density))
