"""What a folder that Orbax wrote holds: steps, items, metrics and metadata. Reads no arrays."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcjax.errors import FormatError
from vcjax.orbax.items.record import DEFAULT_ITEM

V1_ITEMS = ("state", "pytree")
"""What `save_pytree` of the v1 API calls its one tree, now and in earlier versions."""

METRICS_ITEM = "metrics"

STEP_METADATA, ROOT_METADATA = "_CHECKPOINT_METADATA", "_ROOT_METADATA"

PYTREE_METADATA, AGGREGATE = "_METADATA", "checkpoint"
"""What the folder of a tree has: Orbax's description of it; a msgpack file in old ones."""

JSON_FILES = ("data.json", "metadata")

MARKERS = ("commit_success.txt",)
"""Files that Orbax adds to whatever a handler wrote."""

_STEP = re.compile(r"(?:(.+)_)?(\d+)\Z")
_TEMPORARY = ".orbax-checkpoint-tmp"
_IGNORED = frozenset(["array_metadatas", "d"])


@dataclass(frozen=True)
class SavedItem:
    """One item of a step.

    Attributes:
        name: of the item; `DEFAULT_ITEM` where the step is one tree.
        kind: "pytree", "array", "jax_random_key", "np_random_key", "json", or "files":
            a handler that only its writer knows wrote them.
        folder: where it is.
        handler: name of the class that wrote it, where that is known.
    """

    name: str
    kind: str
    folder: Path
    handler: str = ""


@dataclass(frozen=True)
class SavedStep:
    """One step, or a checkpoint that is none.

    Attributes:
        folder: where it is.
        step: its number; None for a checkpoint on its own.
        items: what it holds, metrics aside.
        metrics: as they were saved.
        custom_metadata: what the user noted with it.
        started: when its saving began, nanoseconds since 1970, where known.
        finished: when it was complete.
    """

    folder: Path
    step: int | None
    items: tuple[SavedItem, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    started: int | None = None
    finished: int | None = None

    @property
    def is_single(self) -> bool:
        """Whether the step is one tree and not a composite of named items."""
        return [item.name for item in self.items] == [DEFAULT_ITEM]


@dataclass(frozen=True)
class SavedDirectory:
    """What was found in a folder.

    Attributes:
        folder: absolute path.
        steps: ascending.
        root_metadata: what the manager's user noted about the whole run.
        notices: what was passed over, and why.
    """

    folder: Path
    steps: tuple[SavedStep, ...]
    root_metadata: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def read_directory(folder: Path, prefix: str | None = None) -> SavedDirectory:
    """Looks into a folder of a manager, of one step or of one checkpoint.

    Args:
        folder: of an `orbax.checkpoint.CheckpointManager`, of the v1 API's
            `training.Checkpointer`, one of their steps, or what a checkpointer saved.
        prefix: of the names of the steps, where the folder has several kinds.

    Raises:
        FormatError: Orbax wrote nothing here, or two folders are the same step.
    """
    folder = Path(os.path.abspath(Path(folder).expanduser()))  # TensorStore takes no ".."
    if not folder.is_dir():
        raise FormatError(
            f"{str(folder)!r} is no folder",
            hint="give the directory that the CheckpointManager was made with, or one checkpoint",
        )
    if _TEMPORARY in folder.name:
        raise FormatError(
            f"{folder.name!r} is what an interrupted save left behind", hint="it has no whole tree"
        )
    if is_checkpoint(folder):
        number = int(folder.name) if folder.name.isdecimal() else None
        return SavedDirectory(folder, (read_step(folder, number),))
    steps: dict[int, SavedStep] = {}
    notices = []
    for entry in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        match = _STEP.match(entry.name)
        if _TEMPORARY in entry.name:
            notices.append(f"{entry.name}: passed over, an interrupted save left it behind")
        elif match is None or not (prefix is None or prefix.rstrip("_") == (match[1] or "")):
            if is_checkpoint(entry):
                notices.append(f"{entry.name}: passed over, its name is not that of a step")
        elif not _is_finalized(entry):
            notices.append(f"{entry.name}: passed over, its save was not completed")
        elif not is_checkpoint(entry):
            notices.append(f"{entry.name}: passed over, it holds no checkpoint")
        else:
            step = read_step(entry, int(match[2]))
            twin = steps.setdefault(int(match[2]), step)
            if twin is not step:
                raise FormatError(
                    f"{twin.folder.name!r} and {entry.name!r} are both step {step.step}",
                    hint="say with prefix= which of them you mean, or move one away",
                    shell_hint="say with --step_prefix which of them you mean, or move one away",
                )
    if not steps:
        told = "".join(f"\n  {notice}" for notice in notices)
        raise FormatError(
            f"Orbax has saved nothing in {str(folder)!r}{told}",
            hint="give the directory that the CheckpointManager was made with, or one checkpoint",
        )
    root = _read_json(folder / "metadata" / ROOT_METADATA)
    ordered = tuple(steps[number] for number in sorted(steps))
    return SavedDirectory(folder, ordered, _mapping(root, "custom_metadata"), tuple(notices))


def _is_finalized(folder: Path) -> bool:
    """Orbax's own verdict: in buckets a marker file in the folder decides."""
    import orbax.checkpoint as ocp

    return bool(ocp.path.step.is_path_finalized(folder))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a step or a tree, and not a directory of steps."""
    return (
        (folder / STEP_METADATA).is_file()
        or _is_tree(folder)
        or any(_is_item(child) for child in folder.iterdir())
    )


def _is_item(folder: Path) -> bool:
    """Whether a folder is a tree within a step, and no step, leftover or checkpoint on its own."""
    alone = _STEP.match(folder.name) or _TEMPORARY in folder.name
    return not alone and _is_tree(folder) and not (folder / STEP_METADATA).exists()


def _is_tree(folder: Path) -> bool:
    return (folder / PYTREE_METADATA).is_file() or (
        (folder / AGGREGATE).is_file() and not (folder / "zarr.json").exists()
    )


def read_step(folder: Path, number: int | None) -> SavedStep:
    """What one step, or a checkpoint on its own, consists of.

    Raises:
        FormatError: one of Orbax's JSON files is damaged.
    """
    noted = _read_json(folder / STEP_METADATA)
    handlers = noted.get("item_handlers")
    if _is_tree(folder) or isinstance(handlers, str):
        handler = handlers if isinstance(handlers, str) else ""
        items = (SavedItem(DEFAULT_ITEM, _kind(folder, handler), folder, handler),)
    else:
        known = handlers if isinstance(handlers, dict) else {}
        items = _items(folder, known)
    metrics = _mapping(noted, "metrics")
    metrics |= _read_json(folder / METRICS_ITEM / METRICS_ITEM)
    return SavedStep(
        folder,
        number,
        items,
        metrics,
        _mapping(noted, "custom_metadata"),
        noted.get("init_timestamp_nsecs"),
        noted.get("commit_timestamp_nsecs"),
    )


def _items(folder: Path, handlers: Mapping[str, str]) -> tuple[SavedItem, ...]:
    items = []
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        is_metrics = child.name == METRICS_ITEM and (child / METRICS_ITEM).is_file()
        if is_metrics or child.name in _IGNORED or _TEMPORARY in child.name:
            continue
        handler = handlers.get(child.name)
        handler = handler if isinstance(handler, str) else ""
        items.append(SavedItem(child.name, _kind(child, handler), child, handler))
    if len(items) == 1 and items[0].name in V1_ITEMS and ".v1." in items[0].handler:
        [item] = items
        items = [SavedItem(DEFAULT_ITEM, item.kind, item.folder, item.handler)]
    return tuple(items)


def _kind(folder: Path, handler: str) -> str:
    """What kind of item a folder is: by what is in it, else by its handler."""
    for key in ("jax_random_key", "np_random_key"):
        if (folder / key).is_dir() and (folder / f"{key}_metadata").is_dir():
            return key
    if _is_tree(folder):
        return "array" if handler.endswith("ArrayCheckpointHandler") else "pytree"
    if "Json" in handler.rpartition(".")[2] and any(
        (folder / name).is_file() for name in JSON_FILES
    ):
        return "json"
    return "files"


def read_json_item(folder: Path) -> Any:
    """What a JSON item holds.

    Raises:
        FormatError: it is no JSON.
    """
    for name in JSON_FILES:
        if (folder / name).is_file():
            return _load(folder / name)
    raise FormatError(f"{str(folder)!r} holds none of {', '.join(JSON_FILES)}")


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    found = _load(path)
    if not isinstance(found, dict):
        raise FormatError(f"{str(path)!r} is damaged: it holds no JSON object")
    return found


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{str(path)!r} is damaged: {error}", hint="move that step away to import the others"
        ) from error


def _mapping(noted: Mapping[str, object], key: str) -> dict[str, Any]:
    found = noted.get(key)
    return dict(found) if isinstance(found, dict) else {}
