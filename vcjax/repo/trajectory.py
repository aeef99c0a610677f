"""How leaves moved over a line of history: norms, distances and steps, commit by commit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vcjax.diffing import leaf_statistics
from vcjax.errors import RevisionError, TreeError
from vcjax.history import Commit, History, LeafEntry, Prunings, Resolver, walk
from vcjax.tree import key_impl, select

if TYPE_CHECKING:
    import numpy as np

    from vcjax.objects import ObjectStore


@dataclass(frozen=True)
class LeafTrace:
    """What a leaf did, one number per commit; None where it is not there or cannot be compared.

    Attributes:
        path: leaf path.
        norm: its L2 norm.
        distance: L2 norm of its difference from the first commit that has it.
        step: L2 norm of its difference from the commit before.
    """

    path: str
    norm: tuple[float | None, ...]
    distance: tuple[float | None, ...]
    step: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        figures = {name: list(getattr(self, name)) for name in ("norm", "distance", "step")}
        return {"path": self.path, **figures}


@dataclass(frozen=True)
class Trajectory:
    """What leaves did over a line of history.

    Attributes:
        commits: oldest first.
        leaves: one per leaf.
        pruned: digests of those commits whose data are gone: they have no figures.
    """

    commits: tuple[Commit, ...]
    leaves: tuple[LeafTrace, ...]
    pruned: frozenset[str] = frozenset()

    @property
    def measured(self) -> tuple[Commit, ...]:
        """The commits that have data, oldest first."""
        return tuple(commit for commit in self.commits if commit.digest not in self.pruned)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; commits by digest."""
        return {
            "commits": [commit.digest for commit in self.commits],
            "steps": [commit.step for commit in self.commits],
            "pruned": [c.digest for c in self.commits if c.digest in self.pruned],
            "leaves": [leaf.to_dict() for leaf in self.leaves],
        }


class Source(Protocol):
    """Where commits are read: a repository."""

    history: History
    prunings: Prunings
    resolver: Resolver


def trace(
    repo: Source, objects: "ObjectStore", over: str, paths: str | Sequence[str] | None
) -> Trajectory:
    """What leaves did over a range of commits; see `Reader.trajectory`."""
    commits = line(repo, over)
    pruned = repo.prunings.all()
    kept: list[dict[str, LeafEntry]] = []
    names: dict[str, None] = {}
    for commit in commits:
        leaves = repo.history.manifest_of(commit).leaves
        numeric = {path: entry for path, entry in leaves.items() if _is_numeric(entry)}
        names |= dict.fromkeys(numeric)
        kept.append({} if commit.digest in pruned else numeric)
    chosen = select(list(names), paths)
    if not chosen:
        raise TreeError("these commits have no leaf that is an array of numbers")
    traces = (_traced(objects, path, [leaves.get(path) for leaves in kept]) for path in chosen)
    gone = pruned.intersection(commit.digest for commit in commits)
    return Trajectory(tuple(commits), tuple(traces), gone)


def line(repo: Source, over: str) -> list[Commit]:
    """The commits of a range, both ends included, by first parents, oldest first.

    Raises:
        RevisionError: the first does not lead to the last so.
    """
    ends = repo.resolver.resolve_range(over)
    start, stop = ends if ends is not None else (None, repo.resolver.resolve(over))
    commits = []
    for commit in walk([stop.digest], repo.history.commit, first_parent=True):
        commits.append(commit)
        if start is not None and commit.digest == start.digest:
            return commits[::-1]
    if start is not None:
        raise RevisionError(
            f"{over!r}: first parents do not lead from {stop.digest[:8]} to {start.digest[:8]}",
            hint="`repo.log(first_parent=True)` shows where they lead",
            shell_hint="`vcjax log --first-parent` shows where they lead",
        )
    return commits[::-1]


def _is_numeric(entry: LeafEntry) -> bool:
    return not entry.spec.is_value and key_impl(entry.spec.dtype) is None


def _traced(objects: "ObjectStore", path: str, entries: Sequence[LeafEntry | None]) -> LeafTrace:
    """The trace of one leaf; three of its versions are in memory at the most."""
    rows = list(_rows(objects, path, entries))
    norm, distance, step = zip(*rows, strict=True)
    return LeafTrace(path, norm, distance, step)


_Row = tuple[float | None, float | None, float | None]


def _rows(objects: "ObjectStore", path: str, entries: Sequence[LeafEntry | None]) -> Iterator[_Row]:
    first: tuple[LeafEntry, np.ndarray] | None = None
    before: tuple[LeafEntry, np.ndarray] | None = None
    row: _Row = (None, None, None)
    for entry in entries:
        if entry is None:
            before = None
            yield None, None, None
            continue
        if before is not None and before[0].digest == entry.digest:
            row = (row[0], row[1], 0.0)
            yield row
            continue
        array = dict(objects.read({path: entry}))[path]
        now = (entry, array)
        first = first or now
        norm = leaf_statistics(entry.spec.dtype, array, array)["norm_new"]
        row = (norm, _distance(first, now), None if before is None else _distance(before, now))
        before = now
        yield row


def _distance(
    old: "tuple[LeafEntry, np.ndarray]", new: "tuple[LeafEntry, np.ndarray]"
) -> float | None:
    (one, before), (other, after) = old, new
    if (one.spec.dtype, one.spec.shape) != (other.spec.dtype, other.spec.shape):
        return None
    if one.digest == other.digest:
        return 0.0
    return float(leaf_statistics(other.spec.dtype, before, after)["l2"])
