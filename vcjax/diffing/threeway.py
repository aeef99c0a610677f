"""Two sides of a common base: what each changed, what both did, and how far they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vcjax.diffing.agreement import Agreement, ThreeWay, Verdict
from vcjax.diffing.examination import Side, Stats, examine
from vcjax.diffing.matching import Identified
from vcjax.diffing.measurement import BATCH_BYTES
from vcjax.diffing.task_vectors import Products, agreement, products
from vcjax.diffing.treediff import TreeDiff
from vcjax.tree import is_inexact, leaf_dict


def examine_sides(
    ours: Side,
    theirs: Side,
    base: Side,
    stats: Stats = True,
    paths: str | Sequence[str] | None = None,
    limit: int = BATCH_BYTES,
) -> TreeDiff:
    """The diff from one side to the other, with `TreeDiff.three_way`.

    Args:
        ours: one side.
        theirs: the other.
        base: what both come from.
        stats: as for `examine`.
        paths: leaf path globs: only these leaves.
        limit: bytes of all sides that are prepared at once.
    """
    changes = examine(ours, theirs, stats, paths, limit)
    first = examine(base, ours, stats, None, limit)
    second = examine(base, theirs, stats, None, limit)
    leaves = _verdicts(first, second, leaf_dict(ours[0]), leaf_dict(theirs[0]))
    if paths is not None:
        chosen = {change.path for change in changes.changes}
        chosen |= {change.old_path for change in changes.changes if change.old_path is not None}
        leaves = [leaf for leaf in leaves if leaf.path in chosen]
        first, second = (_among(diff, chosen) for diff in (first, second))
    if not stats:
        return replace(changes, three_way=ThreeWay(first, second, tuple(leaves)))
    sides = [leaf_dict(root) for root, _ in (ours, theirs, base)]
    both = [leaf.path for leaf in leaves if leaf.verdict == "both" and _comparable(leaf, sides)]
    found = products(both, [ours, theirs], base, limit)
    leaves = [
        replace(leaf, stats=agreement(found[leaf.path])) if leaf.path in found else leaf
        for leaf in leaves
    ]
    total = Products.zero(2)
    for part in found.values():
        total.add(part)
    return replace(
        changes,
        three_way=ThreeWay(first, second, tuple(leaves), agreement(total) if found else None),
    )


def _among(diff: TreeDiff, paths: set[str]) -> TreeDiff:
    return TreeDiff(tuple(change for change in diff.changes if change.path in paths))


def _comparable(leaf: Agreement, sides: Sequence[Mapping[str, Identified]]) -> bool:
    """Whether a leaf is at its place on all sides, numbers of one shape and dtype."""
    there = [side[leaf.path].spec for side in sides if leaf.path in side]
    if len(there) < len(sides) or any(spec.is_value for spec in there):
        return False
    return len({str(spec) for spec in there}) == 1 and is_inexact(there[0].dtype)


def _verdicts(
    first: TreeDiff,
    second: TreeDiff,
    ours: Mapping[str, Identified],
    theirs: Mapping[str, Identified],
) -> list[Agreement]:
    """Per leaf of the base, and per leaf that a side added, who changed it."""
    fates = [_fates(diff) for diff in (first, second)]
    found = []
    for path in dict.fromkeys([*fates[0], *fates[1]]):
        one, other = (fate.get(path, ("unchanged", None)) for fate in fates)
        verdict: Verdict
        if one[0] == other[0] == "unchanged":
            verdict = "unchanged"
        elif other[0] == "unchanged":
            verdict = "ours"
        elif one[0] == "unchanged":
            verdict = "theirs"
        else:
            a, b = (
                None if there is None else side[there].digest
                for (_, there), side in ((one, ours), (other, theirs))
            )
            verdict = "same" if one[1] == other[1] and a == b else "both"
        found.append(Agreement(path, verdict, one[0], other[0]))
    return found


def _fates(diff: TreeDiff) -> dict[str, tuple[str, str | None]]:
    """{path in the base, or of what was added: (status, where it is now)}."""
    found = {}
    for change in diff.changes:
        origin = change.path if change.old_path is None else change.old_path
        place = None if change.status == "removed" else change.path
        found.setdefault(origin, (change.status, place))
    return found
