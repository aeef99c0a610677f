"""Checkpoints of Orbax as inputs of a merge, read leaf by leaf."""

from pathlib import Path

from vcjax.errors import FormatError
from vcjax.orbax.files.item_tree import as_dict, read_item
from vcjax.orbax.files.steps import read_directory
from vcjax.streaming.model import Model


def of_orbax(folder: Path, step: int | None = None) -> Model:
    """The model in what Orbax saved.

    Args:
        folder: of a `CheckpointManager`, of one of its steps, or of one checkpoint.
        step: which; the latest by default.

    Raises:
        FormatError: Orbax wrote nothing there, or no such step.
    """
    steps = [found for found in read_directory(folder).steps if step in (None, found.step)]
    if not steps:
        raise FormatError(f"{str(folder)!r} has no step {step}", hint="`ls` shows its steps")
    found = steps[-1]
    roots = {item.name: read_item(item).root for item in found.items}
    root = next(iter(roots.values())) if found.is_single else as_dict(roots)
    changed = found.folder.stat().st_mtime_ns
    mark = f"{found.folder} {found.started} {found.finished} {changed}"
    return Model(str(folder), root, {"orbax": str(found.folder)}, mark)
