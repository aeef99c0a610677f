"""What a plug-in for a checkpoint file format must offer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        tree: a PyTree of NumPy arrays and plain values.
        metadata: what the format keeps beside the tree (JSON-able); given back
            to `Format.write` so that a round trip keeps it.
    """

    tree: Any
    metadata: dict[str, Any] = field(default_factory=dict)


class Format(Protocol):
    """One checkpoint file format, registered under the entry point group `vcjax.formats`."""

    name: str
    suffixes: tuple[str, ...]

    def sniff(self, head: bytes) -> bool:
        """Whether a file that starts with `head` (its first 64 bytes) is of this format."""
        ...

    def read(self, path: Path) -> Checkpoint:
        """Reads a file, exactly.

        Raises:
            FormatError: the file is damaged or not of this format.
        """
        ...

    def write(self, path: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Writes a file that `read` gives back exactly; replaces it atomically.

        Raises:
            FormatError: the format cannot hold this tree; the message names the leaf path.
        """
        ...
