"""Merging again what a merge commit was made of, and comparing; nothing is stored."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from vcjax import hashing, tree
from vcjax.errors import ConflictError, MergeError
from vcjax.hashing import value_digest
from vcjax.history import Commit, History, LeafEntry, Manifest, MergeRequest
from vcjax.merging.config import as_method
from vcjax.merging.records import key_of_record, weights_of_record
from vcjax.objects import ObjectStore
from vcjax.streaming.destination import Gatherer
from vcjax.streaming.executor import execute
from vcjax.streaming.job import Job
from vcjax.streaming.merge import Merge, as_root
from vcjax.streaming.model import Model, of_file
from vcjax.threeway import Decision
from vcjax.threeway.by_method import plan_jobs
from vcjax.threeway.commit_plan import plan_commits
from vcjax.threeway.settle import Settled, settle

Progress = Callable[[int, int], None]


class Source(Protocol):
    """Where commits are read: a repository."""

    history: History

    def require_data(self, commit: Commit) -> None:
        """Raises if the data of a commit were let go."""
        ...

    def model(self, source: Commit) -> Model:
        """A commit as what a merge takes in."""
        ...


@dataclass(frozen=True)
class Rerun:
    """What merging again came to.

    Attributes:
        commit: the merge commit.
        tree: tree digest of what was merged again.
        differing: leaf paths that came out otherwise, or are in only one of both.
        inputs_differ: why something else may have been merged; None if it was the same.
    """

    commit: Commit
    tree: str
    differing: tuple[str, ...]
    inputs_differ: str | None = None

    @property
    def is_same(self) -> bool:
        """Whether the manifest is the same, up to where its leaves are stored."""
        return self.tree == self.commit.tree and not self.differing

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "commit": self.commit.digest,
            "same": self.is_same,
            "tree": self.tree,
            "recorded_tree": self.commit.tree,
            "differing": list(self.differing),
            "inputs_differ": self.inputs_differ,
        }


def rerun(
    repo: Source, objects: ObjectStore, commit: Commit, progress: Progress | None = None
) -> Rerun:
    """Merges again what a merge commit says that it was merged from, and compares.

    Raises:
        MergeError: the commit does not say how it was merged.
        PrunedError: the data of an input were let go.
    """
    provenance = commit.provenance or {}
    again = {"merge": _by_history, "merge_models": _whole}.get(str(provenance.get("operation")))
    if again is None:
        raise MergeError(
            f"commit {commit.digest[:8]} records no merge",
            hint="`vcjax log` shows merges with several parents; `vcjax show` says how it was made",
        )
    try:
        root = again(repo, objects, provenance, progress)
    except KeyError as error:
        raise MergeError(
            f"commit {commit.digest[:8]} does not record its {error.args[0]}",
            hint="it was written by another version of vcjax; merge its inputs by hand",
        ) from error
    recorded, found = repo.history.manifest_of(commit).leaves, tree.leaf_dict(root)
    differing = [
        path
        for path in dict.fromkeys([*recorded, *found])
        if _identity(recorded.get(path)) != _identity(found.get(path))
    ]
    digest = Manifest(root).tree_digest
    return Rerun(commit, digest, tuple(differing), _changed_inputs(commit, provenance))


def _identity(entry: LeafEntry | None) -> Any:
    """All of a leaf but where it is stored."""
    return None if entry is None else (entry.digest, entry.spec)


def _changed_inputs(commit: Commit, provenance: Mapping[str, Any]) -> str | None:
    inputs = provenance["inputs"]
    files = [source["file"] for source in inputs if isinstance(source, dict) and "file" in source]
    if files:
        return f"files may have changed since: {', '.join(files)}"
    if provenance["operation"] == "merge" and list(commit.parents) != list(inputs):
        return (
            f"the branch had moved from {inputs[0][:8]} to {commit.parents[0][:8]} before the "
            "merge was published, which took over what was changed there"
        )
    return None


def _by_history(
    repo: Source, objects: ObjectStore, provenance: Mapping[str, Any], progress: Progress | None
) -> Any:
    """The root of a merge by history."""
    request = MergeRequest.of_provenance(provenance)
    for digest in (*request.commits, *provenance["bases"]) if request.method else ():
        repo.require_data(repo.history.commit(digest))

    def by_method(conflicts: Mapping[str, Decision], request: MergeRequest) -> Settled:
        plan = plan_jobs(conflicts, request, objects)
        entries = digests_of(plan.jobs, key_of_record(request.key), progress)
        return Settled(plan.choices(entries), plan.method)

    try:
        return settle(request, repo.history, by_method).manifest.root
    except ConflictError as error:
        count = len(plan_commits(repo.history, request.commits)[0].conflicts)
        raise MergeError(
            f"what the commit records does not settle its {count} conflicts: {error.message}",
            hint="it was written by another version of vcjax; merge its inputs by hand",
        ) from error


def _whole(
    repo: Source, objects: ObjectStore, provenance: Mapping[str, Any], progress: Progress | None
) -> Any:
    """The root of a merge of whole models."""
    base = provenance["base"]
    method = as_method(provenance["method"])
    assert method is not None
    merge = Merge(
        tuple(_model(repo, source) for source in provenance["inputs"]),
        method,
        None if base is None else _model(repo, base),
        weights_of_record(provenance["weights"]),
        key_of_record(provenance["key"]),
        provenance["dtype"],
    )
    return as_root(merge.models[0], digests_of(merge.jobs(), merge.key, progress))


def _model(repo: Source, source: Mapping[str, Any]) -> Model:
    """The model that a provenance names.

    Raises:
        MergeError: it was neither a commit nor a file.
    """
    if "commit" in source:
        commit = repo.history.commit(source["commit"])
        repo.require_data(commit)
        return repo.model(commit)
    if "file" in source:
        return of_file(source["file"])
    raise MergeError(
        f"an input was {dict(source)}, which cannot be read again",
        hint="merges of commits and of files can be run again",
    )


def digests_of(
    jobs: Sequence[Job], key: "int | jax.Array | None", progress: Progress | None
) -> dict[str, LeafEntry]:
    """The digests of merged leaves, by path; their content is let go."""
    entries: dict[str, LeafEntry] = {}
    gatherer = Gatherer()
    with closing(execute(jobs, key=key, progress=progress)) as pieces:  # pyright: ignore
        for piece in pieces:
            path, leaf = piece.job.path, gatherer.add(piece)
            if leaf is None:
                continue
            if leaf.spec.is_value:
                digest = value_digest(leaf.spec.dtype, leaf.data)
            else:
                [(_, found)] = hashing.iter_digests({path: leaf})
                digest = found.leaf
            entries[path] = LeafEntry(leaf.spec, digest.hex())
    return entries
