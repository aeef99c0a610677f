"""Steps that are linear combinations, with coefficients from the Gram matrix."""

from collections.abc import Callable

from jaxtyping import PyTree

from vcjax.merging.kernels import gram as g
from vcjax.merging.method import Stack
from vcjax.merging.shapes import Products, Share
from vcjax.merging.steps.basic import merged
from vcjax.merging.steps.sliced import Facts, Measure, Sliced


def by_gram(coefficients: Callable[[Products, Share], Share]) -> Sliced:
    """A step that is a linear combination, with coefficients of Gram matrix and weights.

    The weights are those of the models, which every slice has; so the state is the
    Gram matrix, and its few numbers are worked on again for each slice.
    """

    def apply(stack: Stack, facts: Facts, state: PyTree, carry: PyTree) -> tuple[Stack, PyTree]:
        return merged(stack, g.combine(coefficients(state, stack.weights), stack.values)), carry

    measure = Measure(
        lambda stack, facts, state: g.gram(stack.values), lambda facts, state, sums: sums
    )
    return Sliced(apply, (measure,))
