"""From a commit to a checkpoint that Orbax restores: can it be, and where does it go."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vcjax import tree
from vcjax.errors import FormatError, PrunedError, StepExistsError
from vcjax.formats.files import name_problem
from vcjax.history import Commit, LeafEntry
from vcjax.orbax.files.steps import METRICS_ITEM, STEP_METADATA, is_checkpoint
from vcjax.orbax.items.file_tree import file_problems
from vcjax.orbax.items.record import DEFAULT_ITEM, ItemRecord, StepRecord
from vcjax.repo import Repository
from vcjax.tree import Node, escape, unescape

_UNKNOWN_DTYPES = frozenset(
    [
        *("float8_e4m3", "float6_e2m3fn", "float6_e3m2fn", "complex32", "bcomplex32"),
        *("int1", "uint1", "uint2", "uint4"),
    ]
)
"""dtypes that TensorStore's zarr drivers lack; Orbax 0.12 fails on them."""

_UNKNOWN_VALUES = {"complex": "a Python complex number", "bytes": "bytes"}

_RESERVED_ITEMS = (METRICS_ITEM, STEP_METADATA)

_INT_RANGE = range(-(2**63), 2**64)


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write.

    Attributes:
        commit: that is written.
        target: the folder that will hold the checkpoint.
        is_step: whether it is to be a step of a manager's directory.
        record: what the commit's metadata say of the step.
        items: by name; only `DEFAULT_ITEM` of a commit of a single tree.
        replaces: whether there is a checkpoint that has to go.
    """

    commit: Commit
    target: Path
    is_step: bool
    record: StepRecord
    items: Mapping[str, "ExportedItem"]
    replaces: bool

    @property
    def is_single(self) -> bool:
        """Whether the commit is one tree and no composite of items."""
        return list(self.items) == [DEFAULT_ITEM]


@dataclass(frozen=True)
class ExportedItem:
    """One item of a commit.

    Attributes:
        record: what the commit's metadata say of it.
        root: of its part of the manifest.
    """

    record: ItemRecord
    root: Node | LeafEntry


def plan_export(
    repo: Repository,
    revision: str | Commit,
    target: Path,
    *,
    manager: bool = False,
    prefix: str | None = None,
    force: bool = False,
) -> ExportPlan:
    """Looks whether Orbax can hold a commit, and at the target. Reads no data, writes nothing.

    Args:
        repo: where the commit is.
        revision: which commit.
        target: the checkpoint; with `manager`, the directory of a `CheckpointManager`.
        manager: write a step of that directory, with metrics and custom metadata.
        prefix: of the name of the step, as `CheckpointManagerOptions.step_prefix`.
        force: replace a checkpoint that is there.

    Raises:
        FormatError: Orbax cannot hold it, or names of items and files would lead out of
            the target; names every leaf path at fault. Or the target holds something
            that is no checkpoint, or is a link.
        StepExistsError: there is a checkpoint, and not `force`.
        PrunedError: a policy let the data of the commit go.
    """
    commit = repo.resolve(revision)
    if pruning := repo.prunings.get(commit.digest):
        raise PrunedError(f"commit {commit.digest[:8]} has no data any more: {pruning}")
    record = StepRecord.of(commit)
    items, problems = _items(record, repo.history.manifest_of(commit).root)
    problems += [line for name, item in items.items() for line in _problems(name, item)]
    if problems:
        told = "".join(f"\n  {line}" for line in problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise FormatError(
            f"Orbax cannot hold the tree of {commit.digest[:8]}:{told}{more}",
            hint="export it to a .msgpack file with `vcjax checkout`, or commit it without these",
        )
    target = Path(os.path.abspath(os.path.expanduser(target)))
    if manager:
        target /= _step_name(commit, target, prefix)
    return ExportPlan(commit, target, manager, record, items, _is_taken(target, force))


def _step_name(commit: Commit, directory: Path, prefix: str | None) -> str:
    if commit.step is None:
        raise FormatError(
            f"commit {commit.digest[:8]} has no step, so none of a manager can be made of it",
            hint="leave out manager=True, or commit it with metadata={'step': …}",
            shell_hint="leave out --manager, or commit it with --step",
        )
    if directory.is_dir() and is_checkpoint(directory):
        raise FormatError(
            f"{str(directory)!r} is a checkpoint, and not the directory of a manager",
            hint="choose another directory, or leave out manager=True",
            shell_hint="choose another directory, or leave out --manager",
        )
    name = f"{prefix.rstrip('_')}_{commit.step}" if prefix else str(commit.step)
    if problem := name_problem(name):
        raise FormatError(
            f"{name!r} cannot be the name of a step: {problem}", hint="choose another prefix"
        )
    return name


def _is_taken(target: Path, force: bool) -> bool:
    if target.is_symlink():
        raise FormatError(
            f"{str(target)!r} is a symbolic link to {os.readlink(target)!r}",
            hint="give the folder itself; even force=True replaces nothing but checkpoints",
            shell_hint="give the folder itself; even --force replaces nothing but checkpoints",
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not target.is_dir() or not is_checkpoint(target):
        raise FormatError(
            f"{str(target)!r} is not empty, and not a checkpoint either",
            hint="choose another folder; even force=True replaces nothing but checkpoints",
            shell_hint="choose another folder; even --force replaces nothing but checkpoints",
        )
    if not force:
        raise StepExistsError(
            f"there is a checkpoint in {str(target)!r} already",
            hint="force=True replaces it",
            shell_hint="--force replaces it",
        )
    return True


def _items(record: StepRecord, root: Node | LeafEntry) -> tuple[dict[str, ExportedItem], list[str]]:
    """The items of a commit, as `CheckpointManager` and the importer note them.

    Each will be a folder of its own: with them what keeps their names from being those of one.
    """
    if record.single or not isinstance(root, Node):
        item = ExportedItem(record.items.get(DEFAULT_ITEM, ItemRecord()), root)
        return {DEFAULT_ITEM: item}, []
    items: dict[str, ExportedItem] = {}
    problems = []
    for name, child in zip(map(str, root.keys), root.children, strict=True):
        problem = "another one has the same name" if name in items else name_problem(name)
        if problem or name in _RESERVED_ITEMS:
            problem = problem or "Orbax keeps that for itself"
            problems.append(f"{name[:80]!r} cannot be the name of an item: {problem}")
        items[name] = ExportedItem(record.items.get(name, ItemRecord(handler="")), child)
    return items, problems


# -- what Orbax cannot hold --------------------------------------------------------


def _problems(name: str, item: ExportedItem) -> Iterator[str]:
    """What Orbax refuses, or would lose without a word; one line per leaf path."""
    if item.record.kind == "files":
        yield from file_problems(item.root, None if name == DEFAULT_ITEM else escape(name))
    if item.record.kind != "tree":
        return
    prefix = None if name == DEFAULT_ITEM else name
    if isinstance(item.root, Node) and not item.root.children:
        yield f"{prefix or 'the tree'}: it is empty"
    named: dict[str, str] = {}
    for path, entry in tree.iter_leaves(item.root, prefix):
        problem = _leaf_problem(entry)
        if problem:
            yield f"{path}: {problem}"
        flat = ".".join(map(unescape, path.split("/")))
        other = named.setdefault(flat, path)
        if other != path:
            yield f"{path}: Orbax would keep it in one place with {other}, as {flat!r}"
        if entry.spec.dtype == "str" and "~" in flat:
            yield f"{path}: Orbax keeps no text under a name with '~'"


def _leaf_problem(entry: LeafEntry) -> str | None:
    spec = entry.spec
    if spec.is_value:
        if spec.dtype == "int" and int(str(entry.inline), 16) not in _INT_RANGE:
            return "an integer of more than 64 bits"
        return _UNKNOWN_VALUES.get(spec.dtype)
    if 0 in spec.shape:
        return f"an array without elements, {spec}"
    return f"{spec}, a dtype that zarr has not" if spec.dtype in _UNKNOWN_DTYPES else None
