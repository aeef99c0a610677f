"""How far two trees are apart, as two numbers. Needs no JAX."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vcjax.diffing.treediff import LeafChange


def divergences(changes: Iterable["LeafChange"], structure: Sequence[str]) -> tuple[float, float]:
    """The structural and the contextual divergence of two trees.

    Both are 1 − 2 Σ c / (n_old + n_new), a Dice distance, over the leaves of
    either tree and the containers that differ by themselves; c is the credit of
    a pair of leaves that belong together. Structurally it is 1 where path, dtype
    and shape agree and ½ where one of them does not; contextually it is that,
    times the fraction of chunks that are equal by digest. So both are in [0, 1] and
    symmetric; the structural one is 0 if nothing but contents differ, and the
    contextual one, which is never the smaller, only for equal trees. They follow
    from statuses and digests alone, so `stats` changes them only where it lets
    contents settle which leaf is which.

    The two views are MGit's (Hao et al., "MGit: A Model Versioning and Management
    System", ICML 2024, section 3): modules that differ in kind or shape, and
    modules that differ in content.

    Args:
        changes: unchanged ones included.
        structure: paths of containers of another kind, or that one tree lacks.

    Returns:
        (structural, contextual).
    """
    leaves = 0
    structural = contextual = 0.0
    for change in changes:
        if change.old is None or change.new is None:
            leaves += 1
            continue
        leaves += 2
        same = change.old_path is None and str(change.old) == str(change.new)
        credit = 1.0 if same else 0.5
        structural += 2 * credit
        contextual += 2 * credit * (1.0 if change.status == "unchanged" else change.shared)
    total = leaves + 2 * len(structure)
    if not total:
        return 0.0, 0.0
    return 1 - structural / total, 1 - contextual / total
