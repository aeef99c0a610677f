"""`ThreeWay`: what two sides did to a common base. Plain data; needs no JAX."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["unchanged", "ours", "theirs", "same", "both"]
VERDICTS = ("unchanged", "ours", "theirs", "same", "both")


@dataclass(frozen=True)
class Agreement:
    """What two sides did to one leaf of their base.

    Attributes:
        path: leaf path: in the base where it is there, else where a side added it.
        verdict: unchanged; changed by ours or theirs alone; by both to the same; by both.
        ours: what our side did to it: a status of `LeafChange`.
        theirs: what their side did to it.
        stats: of a leaf that both changed, arrays of numbers of one shape: what
            `agreement_statistics` says of the two task vectors (ours − base,
            theirs − base); else None.
    """

    path: str
    verdict: Verdict
    ours: str
    theirs: str
    stats: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "path": self.path,
            "verdict": self.verdict,
            "ours": self.ours,
            "theirs": self.theirs,
            "stats": dict(self.stats) if self.stats is not None else None,
        }


@dataclass(frozen=True)
class ThreeWay:
    """What two sides did to a common base.

    Attributes:
        ours: the diff from the base to our side (`a`), a `TreeDiff`.
        theirs: the diff from the base to their side (`b`).
        leaves: one per leaf of any of the three.
        stats: the agreement of the two task vectors over all leaves that both
            changed, joined end to end; None if there are none, or without `stats`.
    """

    ours: Any
    theirs: Any
    leaves: tuple[Agreement, ...]
    stats: Mapping[str, Any] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """{verdict: number of leaves}, every verdict present."""
        found = Counter(leaf.verdict for leaf in self.leaves)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def with_verdict(self, *verdicts: Verdict) -> tuple[Agreement, ...]:
        """The leaves that have one of these verdicts."""
        return tuple(leaf for leaf in self.leaves if leaf.verdict in verdicts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; unchanged leaves are counted, not listed."""
        return {
            "counts": self.counts,
            "leaves": [leaf.to_dict() for leaf in self.leaves if leaf.verdict != "unchanged"],
            "stats": dict(self.stats) if self.stats is not None else None,
            "ours": self.ours.to_dict(),
            "theirs": self.theirs.to_dict(),
        }
