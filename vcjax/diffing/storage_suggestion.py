"""How a change could be stored, judged from its figures alone. Needs no JAX."""

from collections.abc import Mapping
from typing import Any

INDEX_BYTES = 4
"""What a sparse update spends on the place of an element (8 beyond 2^32 elements)."""

RESIDUAL = 1e-3
"""An update that leaves less than this of a difference is taken to be that difference:
float32 rounding of the weights leaves 1e-5 of a typical fine-tuning step."""

RANKS = (1, 2, 4, 8, 16, 32)
"""The ranks whose energy is reported, and that a low-rank update may have."""


def suggestion(itemsize: int, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The cheapest update that says what changed, and what it would cost.

    Candidates are dense (every element), sparse (value and place of those that
    changed), scaled (one factor) and, where `spectrum` has been computed, low rank
    (two factors in the leaf's dtype). The last two count where they leave less than
    `RESIDUAL` of the difference.

    Args:
        itemsize: bytes of an element.
        figures: of the leaf.

    Returns:
        update: "none", "dense", "sparse", "scaled" or "low_rank".
        update_bytes: what it would cost. dense_bytes: what the whole leaf costs.
        update_rank: of a low-rank update; 0 for all others.
        scale, scale_residual: see `leaf_statistics`.
    """
    elements, changed = figures["elements"], figures["changed"]
    index = INDEX_BYTES if elements <= 1 << 32 else 2 * INDEX_BYTES
    costs = {"dense": (elements * itemsize, 0), "sparse": (changed * (itemsize + index), 0)}
    norm, l2, alignment = figures["norm_old"], figures["l2"], figures["alignment"]
    residual = max(0.0, 1 - alignment * alignment) ** 0.5 if l2 else 0.0
    whole = not figures["nonfinite_old"] and not figures["nonfinite_new"]
    read = figures.get("coverage", 1) == 1  # what was not read is equal: no factor but 1 fits
    if norm and l2 and residual <= RESIDUAL and whole and read and elements > 1:
        costs["scaled"] = (8, 0)
    for rank, energy in zip(RANKS, figures.get("energy", ()), strict=False):
        if 1 - energy <= RESIDUAL * RESIDUAL and whole:
            costs["low_rank"] = (rank * (figures["rows"] + figures["columns"]) * itemsize, rank)
            break
    update = min(costs, key=lambda name: costs[name])
    if not changed:
        update, costs = "none", {"none": (0, 0)}
    return {
        "scale": 1 + alignment * l2 / norm if norm else 1.0,
        "scale_residual": residual,
        "update": update,
        "update_bytes": costs[update][0],
        "update_rank": costs[update][1],
        "dense_bytes": elements * itemsize,
    }
