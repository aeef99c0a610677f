"""Checking a whole repository: every ref, commit, manifest, leaf object and pack."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vcjax.errors import VcjaxError
from vcjax.hashing import chunk_shape, leaf_digest, stored_value_digest
from vcjax.history import Commit, History, KeptMerges, LeafEntry, Manifest, Prunings, Refs
from vcjax.history.refnames import HEAD, HEADS
from vcjax.objects.header import DENSE, ArrayHeader
from vcjax.objects.layout import HEADERS_AT_ONCE, leaf_key, pack_key
from vcjax.objects.relation import Relation
from vcjax.objects.store import ObjectStore
from vcjax.objects.zarr import digest_stored
from vcjax.tree import storage_dtype

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
    """Checks what objects that are not dense are made of; what they stand on is looked at too.

    vcjax reads the copy of the arrays' `zarr.json` in the group's attributes and would not
    notice that one differs; other readers of zarr go by it.
    """
    kept = [entry for _, _, entry in entries if not entry.is_inline]
    keys = sorted(
        {leaf_key(e.digest) if e.packed is None else pack_key(e.packed.pack) for e in kept}
    )
    seen: set[str] = set()
    while keys:
        seen.update(keys)
        needs: set[str] = set()
        for start in range(0, len(keys), HEADERS_AT_ONCE):
            part = keys[start : start + HEADERS_AT_ONCE]
            needs |= _check_group_metadata(objects, part, report)
        keys = sorted(needs - seen)


def _check_group_metadata(
    objects: ObjectStore, keys: Sequence[str], report: FsckReport
) -> set[str]:
    """Checks some objects; gives the keys of those that they stand on."""
    headers: list[tuple[str, ArrayHeader]] = []
    for key in keys:
        with suppress(VcjaxError):  # reading the leaf reports it, by its path
            [header] = objects.read_headers([key])
            if header is not None and header.update != DENSE:
                headers.append((key, header))
    inner = [(k, data) for key, header in headers for k, data in header.inner(key).items()]
    values = objects.store.read_many([f"{key}/zarr.json" for key, _ in inner])
    for (key, expected), value in zip(inner, values, strict=True):
        if value is None:
            report.problems.append(Problem(f"{key}/zarr.json", "is missing"))
        elif value != expected:
            message = "differs from what the group says of the array"
            report.problems.append(Problem(f"{key}/zarr.json", message))
    for key, header in headers:
        if header.relation is not None:
            _check_relation(objects, key, header, header.relation, report)
    return {need for _, header in headers for need in header.needs}


def _check_relation(
    objects: ObjectStore, key: str, header: ArrayHeader, relation: Relation, report: FsckReport
) -> None:
    """Checks that the parts of an update are those that were written, and the group its own."""
    if header.is_group and relation.digest(header.update) != key.rpartition("/")[2]:
        report.problems.append(Problem(key, "is not of the leaves and parts that it is named by"))
    for name, part in relation.parts.items():
        place = f"{key}/{name}"
        found = report.check(
            place,
            lambda at=place, p=part: digest_stored(objects.store, at, p.metadata, p.dtype),
        )
        if found is not None and found.leaf.hex() != part.digest:
            report.problems.append(Problem(place, "its content does not have its digest"))


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
