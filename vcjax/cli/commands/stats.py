"""`vcjax stats`: what the repository holds, and what that takes on disk."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vcjax.cli.command import Command
from vcjax.cli.session import Session
from vcjax.report import Column, Line, format_bytes, line, table

if TYPE_CHECKING:
    from vcjax.repo import Repository
    from vcjax.storage import Store

KINDS = {
    "leaf objects": "leaves/",
    "packs": "packs/",
    "manifests": "manifests/",
    "commits": "commits/",
    "refs": "refs/",
    "log": "log/",
    "other": "",
}
"""{what: prefix of its keys}; the first that fits counts."""

PARTED = ("leaf objects", "packs")
"""What is stored in several files below one key of three parts."""


@dataclass(frozen=True)
class Stored:
    """What one kind of object takes in the store.

    Attributes:
        count: number of objects.
        nbytes: size of all their files, bytes.
    """

    count: int
    nbytes: int


@dataclass(frozen=True)
class Storage:
    """What a repository holds and what that takes.

    Attributes:
        commits: number of stored commits.
        pruned: number of those whose data were let go; what follows is of the others.
        leaves: number of leaves in all of them together.
        distinct_leaves: number of different leaves.
        logical_bytes: size of all versions as full copies.
        distinct_bytes: size of the different leaves.
        kinds: {kind of object: what it takes}.
    """

    commits: int
    pruned: int
    leaves: int
    distinct_leaves: int
    logical_bytes: int
    distinct_bytes: int
    kinds: dict[str, Stored]

    @property
    def stored_bytes(self) -> int:
        """Size of everything in the store."""
        return sum(kind.nbytes for kind in self.kinds.values())

    @property
    def ratio(self) -> float:
        """How many times larger full copies of all versions that have data would be."""
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else 0.0


def measure(repo: "Repository") -> Storage:
    """Counts what is in a repository. Reads commits and manifests, and no leaf data.

    In a bucket, whose listing tells no sizes, every object is read.
    """
    known, pruned = list(repo.history.all_commits()), repo.prunings.all()
    commits = [repo.history.commit(digest) for digest in known if digest not in pruned]
    sizes: dict[str, int] = {}
    for digest in dict.fromkeys(commit.manifest for commit in commits):
        for entry in repo.history.manifest(digest).leaves.values():
            sizes[entry.digest] = entry.nbytes
    return Storage(
        commits=len(known),
        pruned=len(known) - len(commits),
        leaves=sum(commit.leaves for commit in commits),
        distinct_leaves=len(sizes),
        logical_bytes=sum(commit.nbytes for commit in commits),
        distinct_bytes=sum(sizes.values()),
        kinds=_kinds(repo.store),
    )


def _kinds(store: "Store") -> dict[str, Stored]:
    keys: dict[str, list[str]] = {name: [] for name in KINDS}
    for key in store.keys(""):
        kind = next(name for name, prefix in KINDS.items() if key.startswith(prefix))
        keys[kind].append(key)
    return {
        name: Stored(
            len({"/".join(key.split("/")[:3]) if name in PARTED else key for key in found}),
            sum(store.size(key) for key in found),
        )
        for name, found in keys.items()
    }


def run(session: Session) -> int:
    """Shows the storage of the repository."""
    with session.out.status("counting"):
        storage = measure(session.repo)
    fields = {**asdict(storage), "stored_bytes": storage.stored_bytes, "ratio": storage.ratio}
    session.out.report("stats", fields, _lines(storage))
    return 0


def _lines(storage: Storage) -> list[Line]:
    columns = [Column("stored"), Column("objects", right=True), Column("size", right=True)]
    rows = [
        [name, f"{kind.count:,}", format_bytes(kind.nbytes)] for name, kind in storage.kinds.items()
    ]
    rows.append(["all", "", format_bytes(storage.stored_bytes)])
    logical, distinct = map(format_bytes, (storage.logical_bytes, storage.distinct_bytes))
    return [
        *table(columns, rows),
        line(),
        line(f"{_commits(storage)} with {storage.leaves:,} leaves: {logical} in full"),
        line(f"{storage.distinct_leaves:,} of these leaves are distinct: {distinct}"),
        line(_comparison(storage)),
    ]


def _commits(storage: Storage) -> str:
    """How many commits have data."""
    if not storage.pruned:
        return f"{storage.commits:,} commits"
    kept = storage.commits - storage.pruned
    return f"{kept:,} commits (of {storage.commits:,}: {storage.pruned:,} have no data any more)"


def _comparison(storage: Storage) -> str:
    if storage.ratio < 1:
        return "that is less than what commits, refs and settings take besides"
    return f"full copies would take {storage.ratio:.1f} times as much as is stored"


COMMAND = Command(
    name="stats",
    summary="Show what the repository holds and what that takes on disk",
    usage="",
    run=run,
)
