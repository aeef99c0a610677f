"""Comparing two trees in memory."""

from jaxtyping import PyTree

from vcjax.diffing.contents import TreeContent
from vcjax.diffing.digested import digested
from vcjax.diffing.examination import Stats, examine
from vcjax.diffing.threeway import examine_sides
from vcjax.diffing.treediff import TreeDiff
from vcjax.tree import flatten, leaf_dict


def diff(a: PyTree, b: PyTree, base: PyTree = None, stats: Stats = True) -> TreeDiff:
    """What changed from tree `a` to tree `b`.

    Args:
        a: the old tree: arrays, PRNG keys and plain values at its leaves.
        b: the new one.
        base: a tree that both come from: then `TreeDiff.three_way` says what each of
            them changed, and how far they agree.
        stats: whether to compute figures of the differences; "full" adds those that
            need a singular value decomposition, and histograms. Trees in memory are
            always read as a "whole".

    Raises:
        UnsupportedLeafError: a leaf is a function or an unknown object.

    Example:
        >>> import numpy as np
        >>> print(diff({"w": np.zeros(2)}, {"w": np.ones(2)}).counts["changed"])
        1
    """
    trees = [flatten(tree) for tree in ((a, b) if base is None else (a, b, base))]
    roots = [digested(tree) for tree in trees]
    contents = [TreeContent(leaf_dict(tree)) for tree in trees]
    if base is None:
        return examine((roots[0], contents[0]), (roots[1], contents[1]), stats)
    sides = tuple(zip(roots, contents, strict=True))
    return examine_sides(sides[0], sides[1], sides[2], stats)
