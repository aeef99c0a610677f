"""Checking a whole repository: every ref, commit, manifest, leaf object and pack."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vcjax.errors import VcjaxError
from vcjax.hashing import chunk_shape, leaf_digest, stored_value_digest
from vcjax.history import Commit, History, KeptMerges, LeafEntry, Manifest, Prunings, Refs
from vcjax.history.keys import FOLDERS, strangers
from vcjax.history.ref import ForeignRecordError
from vcjax.history.refnames import HEAD, HEADS
from vcjax.objects.layout import leaf_key, pack_key
from vcjax.objects.store import ObjectStore
from vcjax.objects.stored_faults import stored_faults
from vcjax.storage import Store
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
        notes: files that are none of ours, which are passed over: they are no problem.
    """

    problems: list[Problem] = field(default_factory=list)
    commits: int = 0
    leaves: int = 0
    nbytes: int = 0
    notes: list[Problem] = field(default_factory=list)

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
            "notes": [{"object": n.object, "message": n.message} for n in self.notes],
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
    behind. What others may be writing or deleting meanwhile is looked at again before
    anything is said of it.
    """
    report, commits = _check_history(refs, history, prunings, objects)
    if report.problems:
        history.forget()
        again, commits = _check_history(refs, history, prunings, objects)
        again.problems = [problem for problem in again.problems if problem in report.problems]
        report = again
    report.notes += _strangers(objects.store)
    pruned = prunings.all()
    entries: dict[tuple[Any, ...], tuple[str, str, LeafEntry]] = {}
    for commit in commits:
        if commit.digest not in pruned:
            with suppress(VcjaxError):  # which has been reported
                for path, entry in history.manifest(commit.manifest).leaves.items():
                    place = (entry.digest, entry.packed, entry.is_inline)
                    subject = f"leaf {path!r} of commit {commit.digest[:8]}"
                    entries.setdefault(place, (subject, path, entry))
    _check_leaves(report, objects, entries.values())
    return report


def _check_history(
    refs: Refs, history: History, prunings: Prunings, objects: ObjectStore
) -> tuple[FsckReport, list[Commit]]:
    """What is wrong with refs, commits and manifests, and all commits that can be read."""
    report = FsckReport()
    for digest in sorted(prunings.all()):
        report.check(f"pruned/{digest[:8]}", lambda digest=digest: prunings.get(digest))
    tips = _check_refs(report, refs)
    merges = KeptMerges(objects.store)
    for target in merges.targets():
        state = report.check(f"merges/{target}", lambda target=target: merges.get(target))
        tips.update(state.commits if state else ())
    commits = _check_commits(report, history, tips)
    report.commits = len(commits)
    _check_lost_refs(report, refs, history, {commit.digest for commit in commits})
    checked: set[tuple[str, str, int]] = set()
    for commit in commits:
        subject, claims = (
            f"commit {commit.digest[:8]}",
            (commit.manifest, commit.tree, commit.leaves),
        )
        if claims in checked:
            continue
        checked.add(claims)
        manifest = report.check(subject, lambda c=commit: history.manifest(c.manifest))
        if manifest is not None:
            _check_manifest(report, subject, commit, manifest)
    return report, commits


def _check_refs(report: FsckReport, refs: Refs) -> set[str]:
    """The commits that refs and their logs lead to."""
    tips: set[str] = set()
    head = report.check("HEAD", refs.head)
    if head is not None and head.commit:
        tips.add(head.commit)
    logged = refs.logged_names()
    for name in refs.names():
        try:
            ref = refs.get(name)
        except ForeignRecordError as error:
            note = error.is_copy and name not in logged
            (report.notes if note else report.problems).append(Problem(name, error.message))
        except VcjaxError as error:
            report.problems.append(Problem(name, error.message))
        else:
            tips.update([ref.commit] if ref else [])
    for name in logged:
        states = report.check(f"log/{name}", lambda name=name: refs.all_states(name))
        if states is None:
            continue
        tips.update(state.commit for state in states[1] if state.commit)
        for first, last in refs.gaps(name):
            which = f"state {first} is" if first == last else f"states {first} to {last} are"
            report.problems.append(Problem(f"log/{name}", f"its {which} missing"))
        if fault := refs.fault(name):
            report.problems.append(Problem(name, fault.message))
    return tips


def _strangers(store: Store) -> list[Problem]:
    """Notes of files that other programs have left in our folders."""
    keys = [key for folder in FOLDERS for key in store.keys(f"{folder}/", links=False)]
    return [Problem(key, "is none of vcjax's files; it is passed over") for key in strangers(keys)]


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
    kept = [entry for _, _, entry in pending if not entry.is_inline]
    used = {leaf_key(e.digest) if e.packed is None else pack_key(e.packed.pack) for e in kept}
    for key, message in stored_faults(objects, used):
        report.problems.append(Problem(key, message))
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
