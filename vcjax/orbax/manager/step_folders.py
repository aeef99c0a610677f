"""Empty folders with the names that Orbax gives steps, for scripts that look for them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.path import step as ocp_step


class StepFolders:
    """`DIRECTORY/STEP/ITEM` for each step, empty; nothing in vcjax reads them.

    They hold no data and are not part of the repository: deleting them loses nothing.

    Args:
        folder: of the repository; None in a bucket or in memory, where there are none.
        options: the manager's, for the format of names.
    """

    def __init__(self, folder: Path | None, options: ocp.CheckpointManagerOptions):
        self._folder = folder
        self._format = options.step_name_format or ocp_step.standard_name_format(
            step_prefix=options.step_prefix,
            step_format_fixed_length=options.step_format_fixed_length,
        )

    def name(self, step: int) -> str:
        """What Orbax would call the folder of a step."""
        return self._format.build_name(step)

    def make(self, step: int, items: Sequence[str]) -> None:
        """Makes the folders of a step. That they cannot be made is no failure of the save."""
        if self._folder is None:
            return
        try:
            for item in items:
                (self._folder / self.name(step) / item).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logging.warning("no folder for step %d: %s", step, error)

    def remove(self, step: int) -> None:
        """Removes the folders of a step, unless somebody has put something into them."""
        if self._folder is None:
            return
        folder = self._folder / self.name(step)
        with suppress(OSError):  # there are none, or they are not empty
            for item in folder.iterdir():
                item.rmdir()
            folder.rmdir()
