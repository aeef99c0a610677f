"""PCB-Merging: parameters of all models compete, and the winners are averaged.

Its thresholds range over whole models, and all of them are order statistics, so
histograms of 16 bits, summed over the leaves, find them without a sort.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vcjax.merging.compose import chain
from vcjax.merging.kernels.linalg import safe_divide, total
from vcjax.merging.kernels.top_k import DIGIT, choose_digit, count, histogram
from vcjax.merging.makers import checked, recipe, transform
from vcjax.merging.method import MergeMethod, Stack, Transform
from vcjax.merging.shapes import Coefficient, Totals
from vcjax.merging.steps.basic import add_base, merged, scale_by, task_vectors

SIGN = np.uint32(1 << 31)


def ordered_keys(x: jax.Array) -> jax.Array:
    """float32 as uint32 that orders as the numbers do; NaN counts as 0.

    So that one NaN does not become the limit that all else is measured by.
    """
    known = jnp.nan_to_num(
        lax.stop_gradient(x).astype(jnp.float32), posinf=jnp.inf, neginf=-jnp.inf
    )
    bits = lax.bitcast_convert_type(known, jnp.uint32)
    return jnp.where(bits & SIGN, ~bits, bits | SIGN)


def of_key(key: jax.Array) -> jax.Array:
    """The float32 that `ordered_keys` made a key of."""
    bits = jnp.where(key & SIGN, key ^ SIGN, ~key)
    return lax.bitcast_convert_type(bits, jnp.float32)


def high_digits(values: Sequence[jax.Array]) -> jax.Array:
    """`int32[N, 65536]`: how often each upper half of a key occurs."""
    keys = jnp.stack([ordered_keys(x) for x in values])
    # A loop, as N histograms take N times as long to compile.
    return lax.map(lambda k: histogram(k, DIGIT, 0), keys)


def prefixes(high: jax.Array, needs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Upper halves of the keys at some ranks, and how many keys are above: `[R, N]` each."""
    pick = jax.vmap(jax.vmap(choose_digit, (0, None)), (None, 0))
    digit, above, _ = pick(high, needs)
    return digit.astype(jnp.uint32), above


def low_digits(values: Sequence[jax.Array], high: jax.Array, needs: jax.Array) -> jax.Array:
    """`int32[R, N, 65536]`: how often each lower half occurs below the prefix of a rank."""
    found, _ = prefixes(high, needs)
    keys = jnp.stack([ordered_keys(x) for x in values])
    at_rank = jax.vmap(lambda k, prefix: histogram(k, 0, prefix), (None, 0))
    rows = lax.map(lambda model: at_rank(*model), (keys, found.T))
    return jnp.swapaxes(rows, 0, 1)


def at_ranks(high: jax.Array, low: jax.Array, needs: jax.Array) -> jax.Array:
    """`float32[R, N]`: of every model the numbers that are `needs`-th from the top."""
    found, above = prefixes(high, needs)
    digit, _, _ = jax.vmap(jax.vmap(choose_digit))(low, needs[:, None] - above)
    return of_key((found << DIGIT) | digit.astype(jnp.uint32))


def from_top(size: int, share: Coefficient, last: bool) -> jax.Array:
    """Rank from the top (1 is the largest) of the official `int(size * share)` from the bottom.

    Args:
        size: number of elements.
        share: fraction of them below.
        last: the element before it, `int(size * share - 1)`.
    """
    count(1.0, size)  # raises where int32 cannot count the elements
    if isinstance(share, (int, float)):
        rank = int(size * share - 1) if last else int(size * share)
        return jnp.int32(size - min(max(rank, 0), size - 1))
    rank = jnp.floor(jnp.asarray(share, jnp.float32) * size - (1 if last else 0))
    return size - jnp.clip(rank, 0, size - 1).astype(jnp.int32)


@transform("density", "clip")
def compete(density: Coefficient = 0.05, clip: Coefficient = 1e-4) -> Transform:
    """PCB-Merging's balanced mean of task vectors; see `pcb`."""
    checked("density", density, 0, 1)
    checked("clip", clip, 0, 1)

    def magnitude_ranks(size: int) -> jax.Array:
        return jnp.stack([from_top(size, clip, False), from_top(size, 1 - clip, True)])

    def score_ranks(size: int) -> jax.Array:
        return jnp.stack([from_top(size, 1 - density, False), jnp.int32(1)])

    def magnitudes(stack: Stack) -> list[jax.Array]:
        return [jnp.abs(x) for x in stack.values]

    def limits(stack: Stack, totals: Totals) -> jax.Array:
        return at_ranks(totals[0], totals[1], magnitude_ranks(stack.size))

    def scores(stack: Stack, totals: Totals) -> list[jax.Array]:
        low, high = limits(stack, totals)
        n, whole = len(stack.values), total(stack.values)
        found = []
        for i, x in enumerate(stack.values):
            own = shares(jnp.abs(x), low[i], high[i])
            found.append(jnp.exp(n * jnp.square(own)) * jnp.tanh(x * whole))
        return found

    def apply(stack: Stack, totals: Totals = ()) -> Stack:
        low, high = limits(stack, totals)
        worst, best = at_ranks(totals[2], totals[3], score_ranks(stack.size))
        top, bottom = [], []
        for i, (x, score) in enumerate(zip(stack.values, scores(stack, totals), strict=True)):
            share = shares(score, worst[i], best[i])
            # One score rounds differently in two programs, and any balance above 0 would
            # move its element as far as one of 1.
            balance = stack.weights[i] * jnp.where(share <= 1e-6, 0, share)
            clipped = jnp.sign(x) * jnp.clip(jnp.abs(x), low[i], high[i])
            top.append(balance * clipped)
            bottom.append(balance)
        return merged(stack, safe_divide(total(top), total(bottom)))

    rounds = (
        lambda stack, totals: high_digits(magnitudes(stack)),
        lambda stack, totals: low_digits(magnitudes(stack), totals[0], magnitude_ranks(stack.size)),
        lambda stack, totals: high_digits(scores(stack, totals)),
        lambda stack, totals: low_digits(scores(stack, totals), totals[2], score_ranks(stack.size)),
    )
    return Transform(apply, rounds, locality="model", weighted=True)


def shares(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Where numbers are between two limits: 0 at `low` and below, 1 at `high` and above.

    Where the limits are one, all numbers from there on are at `high`.
    """
    span = high - low
    inside = (jnp.clip(x, low, high) - low) / jnp.where(span > 0, span, 1)
    return jnp.where((span > 0) | jnp.isnan(x), inside, x >= high).astype(x.dtype)


@recipe
def pcb(
    density: Coefficient = 0.05, scale: Coefficient = 1.0, clip: Coefficient = 1e-4
) -> MergeMethod:
    r"""PCB-Merging: parameters compete within and between tasks, and the best are averaged.

    The score of an element is :math:`e^{N \hat m_i^2} \tanh(τ_i \sum_j τ_j)` with
    :math:`\hat m_i` the magnitude :math:`|τ_i|`, brought to [0, 1] over the whole
    model; scores below the top `density` of the model count 0, the best counts 1,
    and these balances weigh the task vectors:
    :math:`b + λ \sum w_i β_i τ_i / \sum w_i β_i`. No gradient flows through limits.

    Source: Du et al., 2024 (arXiv 2410.02396), §3; exponential, tanh and clipping
    as the official code, where the paper writes both competitions as softmax.

    Args:
        density: fraction of each model whose balance is not 0.
        scale: λ (the authors search around 1.2).
        clip: fraction of smallest and of largest magnitudes that are clipped.

    Example:
        >>> from vcjax import merging
        >>> base, a, b = {"w": [0.0, 0.0]}, {"w": [4.0, 0.5]}, {"w": [-1.0, 3.0]}
        >>> method = merging.pcb(density=0.5, clip=0.0)
        >>> [x.item() for x in merging.merge([a, b], method, base=base)["w"]]
        [4.0, 3.0]
    """
    return chain(task_vectors(), compete(density, clip), scale_by(scale), add_base())
