"""What a diff measured, where it is known that there was something to measure."""

from collections.abc import Mapping
from typing import Any, Protocol

import vcjax
from vcjax.diffing.agreement import ThreeWay


class Measured(Protocol):
    """A change of a leaf or of a module, or what two sides did to one."""

    @property
    def stats(self) -> Mapping[str, Any] | None:
        """Its figures, or None."""
        ...


def figures(change: Measured) -> Mapping[str, Any]:
    """The figures of a change of numbers."""
    assert change.stats is not None
    return change.stats


def three_way(diff: vcjax.TreeDiff) -> ThreeWay:
    """What both sides did, of a diff with a base."""
    assert diff.three_way is not None
    return diff.three_way
