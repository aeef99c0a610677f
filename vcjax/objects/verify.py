"""Checking a whole repository: every ref, commit, manifest, leaf object and pack."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vcjax.errors import VcjaxError
from vcjax.hashing import chunk_shape, leaf_digest, stored_value_digest
from vcjax.history import Commit, History, KeptMerges, LeafEntry, Manifest, Prunings, Refs
from vcjax.history.refnames import HEAD, HEADS
from vcjax.objects.header import ArrayHeader
from vcjax.objects.layout import leaf_key
from vcjax.objects.store import ObjectStore
from vcjax.tree import storage_dtype

HEADERS_AT_ONCE = 256
"""How many objects' metadata are read before they are let go."""

BATCH_BYTES = 256 * 1024 * 1024
"""How much is read before what was read is let go."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        object: what: "refs/heads/main", "commit ab12cd34", "leaf params/w of commit ab12cd34"…
        message: how.
    """

    object: str
    message: str

    def __str__(self) -> str:
        return f"{self.object}: {self.message}"


@dataclass
class FsckReport:
    """What a check of the whole repository found.

    Attributes:
        problems: empty if all is well.
        commits: how many commits were checked.
        leaves: how many distinct leaves were read and checked against their digests.
        nbytes: their size in bytes.
    """

    problems: list[Problem] = field(default_factory=list)
    commits: int = 0
    leaves: int = 0
    nbytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for `--json`."""
        return {
            "ok": self.ok,
            "problems": [{"object": p.object, "message": p.message} for p in self.problems],
            "commits": self.commits,
            "leaves": self.leaves,
            "nbytes": self.nbytes,
        }

    def check(self, subject: str, action: Callable[[], Any]) -> Any:
        """The result of an action, or None with its error noted as a problem of `subject`."""
        try:
            return action()
        except VcjaxError as error:
            self.problems.append(Problem(subject, error.message))
            return None


def fsck(refs: Refs, history: History, prunings: Prunings, objects: ObjectStore) -> FsckReport:
    """Checks everything that any ref or logged state leads to, reading all data.

    The data of pruned commits need not be there. Objects that nothing leads to are
    the garbage collector's business, not damage: an interrupted commit leaves some
    behind.
    """
    report = FsckReport()
    pruned = prunings.all()
    for digest in sorted(pruned):
        report.check(f"pruned/{digest[:8]}", lambda digest=digest: prunings.get(digest))
    tips = _check_refs(report, refs)
    merges = KeptMerges(objects.store)
    for target in merges.targets():
        state = report.check(f"merges/{target}", lambda target=target: merges.get(target))
        tips.update(state.commits if state else ())
    commits = _check_commits(report, history, tips)
    report.commits = len(commits)
    _check_lost_refs(report, refs, history, {commit.digest for commit in commits})
    entries: dict[tuple[Any, ...], tuple[str, str, LeafEntry]] = {}
    checked: set[str] = set()
    for commit in commits:
        if commit.manifest in checked:
            continue
        if commit.digest not in pruned:
            checked.add(commit.manifest)
        subject = f"commit {commit.digest[:8]}"
        manifest = report.check(subject, lambda c=commit: history.manifest(c.manifest))
        if manifest is not None:
            _check_manifest(report, subject, commit, manifest)
            kept = {} if commit.digest in pruned else manifest.leaves
            for path, entry in kept.items():
                place = (entry.digest, entry.packed, entry.is_inline)
                entries.setdefault(place, (f"leaf {path!r} of {subject}", path, entry))
    _check_leaves(report, objects, entries.values())
    return report


def _check_refs(report: FsckReport, refs: Refs) -> set[str]:
    """The commits that refs and their logs lead to."""
    tips: set[str] = set()
    head = report.check("HEAD", refs.head)
    if head is not None and head.commit:
        tips.add(head.commit)
    for name in refs.names():
        ref = report.check(name, lambda name=name: refs.get(name))
        if ref is not None:
            tips.add(ref.commit)
    for name in refs.logged_names():
        states = report.check(f"log/{name}", lambda name=name: refs.log(name))
        tips.update(state.commit for state in states or [])
        for number in report.check(f"log/{name}", lambda name=name: refs.gaps(name)) or []:
            report.problems.append(Problem(f"log/{name}", f"its state {number} is missing"))
    return tips


def _check_lost_refs(report: FsckReport, refs: Refs, history: History, reached: set[str]) -> None:
    """Names that have a log but neither a ref nor, at the end of the log, a deletion.

    The state that was lost was not logged, but its commit may still be there.
    """
    logged = [name for name in refs.logged_names() if name != HEAD]
    lost = {name: report.check(f"log/{name}", lambda name=name: refs.lost(name)) for name in logged}
    lost = {name: state for name, state in lost.items() if state is not None}
    if not lost:
        return
    loose = {}
    for digest in sorted(set(history.all_commits()) - reached):
        with suppress(VcjaxError):  # an interrupted commit may leave anything
            loose[digest] = history.commit(digest)
    inner = {parent for commit in loose.values() for parent in commit.parents}
    tips = [digest for digest in loose if digest not in inner]
    more = f"; commits that nothing leads to: {', '.join(tips)}" if tips else ""
    for name, state in lost.items():
        where = f"its log ends at state {state.sequence}, commit {state.commit}"
        report.problems.append(Problem(name, f"is missing; {where}{more}"))
    head = report.check(HEAD, refs.head)
    if head is not None and f"{HEADS}{head.branch}" in lost:
        report.problems.append(Problem(HEAD, f"is on {HEADS}{head.branch}, which is missing"))


def _check_commits(report: FsckReport, history: History, tips: Iterable[str]) -> list[Commit]:
    """All ancestors of `tips` that can be read."""
    commits: dict[str, Commit] = {}
    queue = sorted(tips)
    seen = set(queue)
    while queue:
        digest = queue.pop()
        commit = report.check(f"commit {digest[:8]}", lambda digest=digest: history.commit(digest))
        if commit is None:
            continue
        commits[digest] = commit
        fresh = [parent for parent in commit.parents if parent not in seen]
        seen.update(fresh)
        queue.extend(fresh)
    for digest, commit in commits.items():
        known = [commits[parent].generation for parent in commit.parents if parent in commits]
        if len(known) == len(commit.parents) and commit.generation != 1 + max(known, default=0):
            report.problems.append(Problem(f"commit {digest[:8]}", "its generation is wrong"))
    return list(commits.values())


def _check_manifest(report: FsckReport, subject: str, commit: Commit, manifest: Manifest) -> None:
    if manifest.tree_digest != commit.tree:
        report.problems.append(Problem(subject, "its manifest is of a different tree"))
    if manifest.encode()[0] != manifest.digest:
        report.problems.append(Problem(subject, "its manifest is not in canonical form"))
    if len(manifest.leaves) != commit.leaves:
        report.problems.append(
            Problem(subject, f"has {len(manifest.leaves)} leaves and claims {commit.leaves}")
        )


def _check_leaves(
    report: FsckReport, objects: ObjectStore, entries: Iterable[tuple[str, str, LeafEntry]]
) -> None:
    """Reads all leaves; after a failure goes on leaf by leaf, so that each one is named."""
    pending = list(entries)
    report.leaves = len({entry.digest for _, _, entry in pending})
    report.nbytes = sum({entry.digest: entry.nbytes for _, _, entry in pending}.values())
    _check_groups(report, objects, pending)
    batch: list[tuple[str, str, LeafEntry]] = []
    size = 0
    for item in pending:
        if entry_problem := _entry_problem(item[2]):
            report.problems.append(Problem(item[0], entry_problem))
        elif not item[2].spec.is_value:
            batch.append(item)
            size += item[2].nbytes
        if size >= BATCH_BYTES:
            _check_batch(report, objects, batch)
            batch, size = [], 0
    _check_batch(report, objects, batch)


def _check_groups(
    report: FsckReport, objects: ObjectStore, entries: Iterable[tuple[str, str, LeafEntry]]
) -> None:
    """Compares the `zarr.json` of the array in each group with the group's own.

    vcjax reads the copy in the group's attributes and would not notice; other
    readers of zarr go by this one. Bases are looked at too.
    """
    objects_ = (e.digest for _, _, e in entries if not e.is_inline and e.packed is None)
    keys, seen = sorted(set(map(leaf_key, objects_))), set()
    while keys:
        seen.update(keys)
        bases = set()
        for start in range(0, len(keys), HEADERS_AT_ONCE):
            part = keys[start : start + HEADERS_AT_ONCE]
            bases |= _check_group_metadata(objects, part, report)
        keys = sorted(bases - seen)


def _check_group_metadata(
    objects: ObjectStore, keys: Sequence[str], report: FsckReport
) -> set[str]:
    """Checks some objects; gives the keys of their bases."""
    headers: list[tuple[str, ArrayHeader]] = []
    for key in keys:
        with suppress(VcjaxError):  # reading the leaf reports it, by its path
            [header] = objects.read_headers([key])
            if header is not None and header.base is not None:
                headers.append((key, header))
    inner = [f"{header.array_key(key)}/zarr.json" for key, header in headers]
    values = objects.store.read_many(inner)
    for name, value, (_, header) in zip(inner, values, headers, strict=True):
        if value is None:
            report.problems.append(Problem(name, "is missing"))
        elif value != header.encode_metadata():
            report.problems.append(Problem(name, "differs from what the group says of the array"))
    return {leaf_key(header.base) for _, header in headers if header.base is not None}


def _entry_problem(entry: LeafEntry) -> str | None:
    """What is wrong with a leaf as far as the manifest tells."""
    spec = entry.spec
    if spec.is_value:
        digest = stored_value_digest(spec.dtype, entry.inline)
        return None if digest.hex() == entry.digest else "its value does not have its digest"
    if entry.chunks:
        grid = chunk_shape(spec.shape, storage_dtype(spec.dtype).itemsize)
        if leaf_digest(spec.dtype, spec.shape, grid, entry.chunks).hex() != entry.digest:
            return "its chunk digests do not give its digest"
    return None


def _check_batch(
    report: FsckReport, objects: ObjectStore, batch: list[tuple[str, str, LeafEntry]]
) -> None:
    def read(entries: dict[str, LeafEntry]) -> None:
        for _ in objects.read(entries):
            pass

    try:
        read({subject: entry for subject, _, entry in batch})
    except VcjaxError:
        for subject, path, entry in batch:
            report.check(subject, lambda path=path, entry=entry: read({path: entry}))
