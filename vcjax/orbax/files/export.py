"""Carrying out an export: Orbax itself writes the checkpoint."""

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from vcjax import tree
from vcjax.formats.files import storage_error
from vcjax.orbax.files.export_plan import ExportedItem, ExportPlan
from vcjax.orbax.items.handler_files import Files
from vcjax.orbax.items.record import DEFAULT_ITEM
from vcjax.orbax.orbax_internals import rich_types
from vcjax.repo import Repository
from vcjax.repo.restore import read_leaves
from vcjax.tree import Leaf, LeafSpec, Node


def run_export(repo: Repository, plan: ExportPlan) -> None:
    """Writes the checkpoint of a plan.

    Orbax takes trees in memory: this needs the memory of the tree, and what Orbax
    takes on top (docs/guides/importing-from-orbax.md has figures). All is written
    into a folder beside the target, which is then renamed, so that an interrupted
    export neither leaves half a checkpoint nor takes away the one it was to replace.

    Raises:
        CorruptionError: a leaf is damaged or gone.
        StorageError: the disk refused.
    """
    items = {name: _restored(repo, item) for name, item in plan.items.items()}
    target = plan.target
    work = target.parent / f".vcjax-{secrets.token_hex(8)}.tmp"
    try:
        work.mkdir(parents=True)
        if plan.is_single and not plan.is_step:
            _write_single(work / "checkpoint", plan, items[DEFAULT_ITEM])
            made = work / "checkpoint"
        else:
            made = _write_step(work / "manager", plan, items)
            _place_root_metadata(work / "manager" / "metadata", target.parent, plan)
        if target.exists():
            target.rename(work / "replaced")
        made.rename(target)
    except OSError as error:
        raise storage_error("write", target, error.errno, error.strerror or str(error)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_single(folder: Path, plan: ExportPlan, value: PyTree) -> None:
    item = plan.items[DEFAULT_ITEM]
    if item.record.kind == "tree":  # whatever saved it, Orbax's checkpointers of trees restore it
        handler, custom = _tree_handler(), item.record.custom_metadata
        given, keywords = (), {"args": ocp.args.PyTreeSave(value, custom_metadata=custom)}
    elif item.record.kind == "json":
        handler = ocp.JsonCheckpointHandler()
        given, keywords = (), {"args": ocp.args.JsonSave(value)}
    else:
        handler = _files_handler(item.record.handler)
        given, keywords = (value,), {}
    custom = _given(plan.record.custom_metadata)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, *given, custom_metadata=custom, **keywords)


def _tree_handler() -> ocp.PyTreeCheckpointHandler:
    """Notes besides which containers were tuples and namedtuples, so that an import knows."""
    return ocp.PyTreeCheckpointHandler(pytree_metadata_options=rich_types())


def _write_step(folder: Path, plan: ExportPlan, items: Mapping[str, PyTree]) -> Path:
    given = plan.record.metrics
    metrics = given if isinstance(given, dict) else dict(plan.commit.metrics)
    registry = ocp.DefaultCheckpointHandlerRegistry()
    args = {}
    for name, item in plan.items.items():
        args[name] = _save_args(item, items[name])
        if item.record.kind == "files":
            registry.add(name, FilesSave, _files_handler(item.record.handler))
        elif isinstance(args[name], ocp.args.PyTreeSave):
            registry.add(name, ocp.args.PyTreeSave, _tree_handler())
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=False,
        create=True,
        best_fn=(lambda _: 0.0) if metrics else None,  # without one, Orbax drops metrics
    )
    step = plan.commit.step or 0
    with ocp.CheckpointManager(
        folder,
        options=options,
        handler_registry=registry,
        metadata=_given(plan.record.root_metadata),
    ) as manager:
        manager.save(
            step,
            args=args[DEFAULT_ITEM] if plan.is_single else ocp.args.Composite(**args),
            metrics=metrics or None,
            custom_metadata=_given(plan.record.custom_metadata),
        )
    return folder / str(step)


def _place_root_metadata(made: Path, directory: Path, plan: ExportPlan) -> None:
    """What was noted about the whole run goes to the manager's directory, if that has nothing."""
    if plan.is_step and made.exists() and not (directory / made.name).exists():
        made.rename(directory / made.name)


def _given(metadata: Mapping[str, object]) -> dict[str, object] | None:
    """None, for Orbax to write nothing, where nothing was given."""
    return dict(metadata) or None


# -- items -------------------------------------------------------------------------


def _save_args(item: ExportedItem, value: PyTree) -> ocp.args.CheckpointArgs:
    match item.record.kind:
        case "files":
            return FilesSave(value)
        case "json":
            return ocp.args.JsonSave(value)
    match item.record.handler.rpartition(".")[2]:
        case "JaxRandomKeyCheckpointHandler":
            return ocp.args.JaxRandomKeySave(value)
        case "NumpyRandomKeyCheckpointHandler":
            return ocp.args.NumpyRandomKeySave(value)
    if not isinstance(item.root, Node):
        return ocp.args.ArraySave(value)
    return ocp.args.PyTreeSave(value, custom_metadata=item.record.custom_metadata)


def _restored(repo: Repository, item: ExportedItem) -> PyTree:
    """An item in containers and arrays that Orbax knows."""
    leaves = dict(read_leaves(repo.objects, tree.leaf_dict(item.root)))
    return tree.unflatten(_known(tree.map_leaves(partial(_value, leaves), item.root)))


def _value(leaves: Mapping[str, Leaf], path: str, _: object) -> Leaf:
    leaf = leaves[path]
    value = tree.restore_leaf(leaf)
    if leaf.spec.home == "scalar":
        value = np.asarray(value)  # Orbax makes Python numbers of NumPy's
    return Leaf(LeafSpec("value", (), "python"), value)  # "python": taken over as it is


def _known(node: Node | Leaf) -> Node | Leaf:
    """The same tree of dicts with text keys, lists, tuples and namedtuples."""
    if not isinstance(node, Node):
        return node
    children = tuple(map(_known, node.children))
    if node.kind in ("list", "tuple", "namedtuple", "none"):
        return Node(node.kind, node.keys, children, node.name)
    return Node("dict", tuple(map(str, node.keys)), children)


# -- files of other handlers -------------------------------------------------------


class FilesHandler(ocp.CheckpointHandler):
    """Writes the files that a handler of the user's own wrote at first."""

    signs_as_another = True  # so that nothing is restored by it

    def save(self, directory: epath.Path, args: "FilesSave | Files") -> None:
        """Writes them: given by a manager as arguments, by a checkpointer as they are."""
        _write_files(Path(directory), args.item if isinstance(args, FilesSave) else args)

    def restore(self, directory: epath.Path, args: object = None) -> NoReturn:
        """Is up to the handler that wrote them."""
        raise NotImplementedError("only the handler that wrote these files can restore them")


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclass
class FilesSave(ocp.args.CheckpointArgs):
    """What `FilesHandler` saves.

    Attributes:
        item: arrays of bytes, in dicts that are the folders.
    """

    item: Files


def _files_handler(name: str) -> FilesHandler:
    """A handler that signs as the one that wrote the files at first.

    Of a class of its own in any case, for which no arguments are registered: a checkpointer
    then hands over what it is given, and a manager is told by a registry.
    """
    name = name or FilesHandler.typestr()
    signed = type("FilesHandler", (FilesHandler,), {"typestr": classmethod(lambda cls: name)})
    return signed()


def _write_files(folder: Path, item: Files) -> None:
    for name, content in item.items():
        if isinstance(content, dict):
            (folder / name).mkdir()
            _write_files(folder / name, content)
        else:
            (folder / name).write_bytes(np.asarray(content).tobytes())
