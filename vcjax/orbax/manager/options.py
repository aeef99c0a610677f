"""Options of the checkpoint manager: Orbax's, and what we add."""

from dataclasses import dataclass
from typing import Any

import orbax.checkpoint as ocp

from vcjax.errors import VcjaxError


@dataclass
class CheckpointManagerOptions(ocp.CheckpointManagerOptions):
    """What a `CheckpointManager` saves and keeps. Names and defaults are Orbax's.

    Orbax's own options are accepted as they are; docs/guides/migrating-from-orbax.md has
    a table of what each means here.

    Attributes:
        overwrite: whether saving a step that exists replaces it (the former state stays in
            history). Orbax raises, or returns False; `save(overwrite=)` decides one by one.
        step_folders: whether a step saved by `args=` into a local folder gets an empty
            folder with Orbax's name for it, `DIRECTORY/STEP/ITEM`: for scripts that look for
            steps by path, and for `Checkpointer.restore` with such a path.
        process_timeout_s: of several processes, how long another one may give no sign of
            life, seconds; `async_options.timeout_secs` if that is less.
    """

    overwrite: bool = False
    step_folders: bool = True
    process_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.read_only and self.save_interval_steps < 1:
            raise VcjaxError(
                "save_interval_steps must be 1 or more",
                hint="read_only=True is for managers that never save",
            )


def added(options: ocp.CheckpointManagerOptions, name: str) -> Any:
    """One of the options that Orbax does not have; its default for Orbax's own options."""
    return getattr(options, name, getattr(CheckpointManagerOptions, name))


def process_timeout(seconds: float, async_options: ocp.AsyncOptions | None) -> float:
    """How long another process may give no sign of life, seconds: the smaller of two options."""
    return min(seconds, getattr(async_options, "timeout_secs", None) or seconds)


def is_local(processes: ocp.options.MultiprocessingOptions | None) -> bool:
    """Whether each process has a repository of its own: `primary_host` is None, as in Orbax.

    Args:
        processes: None for the default.

    Raises:
        VcjaxError: only some of several processes are to take part.
    """
    if processes is None:
        return False
    if processes.primary_host is None:
        return True
    active = processes.active_processes
    if active is None:
        return False
    import jax

    if len(active) < jax.process_count():
        raise VcjaxError(
            f"only processes {sorted(active)} are to save, and the others have parts of the arrays",
            hint="save by all processes, or with MultiprocessingOptions(primary_host=None) "
            "to a repository for each",
        )
    return False
