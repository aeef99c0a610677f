"""The format "json": arrays that one can read and edit as text; for small models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vcjax.errors import FormatError
from vcjax.formats import Checkpoint, arrays, files
from vcjax.tree.spec import escape


class Json:
    """`{"leaves": {name: [dtype, shape, values]}, "metadata": …}`; nested names have a `/`."""

    name = "json"
    suffixes = (".json",)

    def sniff(self, head: bytes) -> bool:
        """Whether a file is one that `write` wrote."""
        return head.startswith(b'{"leaves": ')

    def read(self, path: Path) -> Checkpoint:
        """Reads a file; damage is a FormatError that names it."""
        with files.reading(path, "a JSON checkpoint", ValueError, KeyError, TypeError):
            content = json.loads(path.read_text("utf-8"))
            leaves = {
                name: np.array(values, dtype).reshape(shape)
                for name, (dtype, shape, values) in content["leaves"].items()
            }
            return Checkpoint(leaves, dict(content["metadata"]))

    def write(self, path: Path, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Writes a file, atomically; a number that JSON has not is a FormatError."""
        named = arrays.named_arrays(tree, "/", self.name, escape)
        leaves = {
            name: [array.dtype.name, array.shape, array.tolist()] for name, array in named.items()
        }
        try:
            text = json.dumps({"leaves": leaves, "metadata": dict(metadata)})
        except TypeError as error:
            raise FormatError(f"JSON cannot hold this: {error}", hint="write .npz") from error
        with files.replacing(path) as temporary:
            temporary.write_text(text, "utf-8")


FORMAT = Json()
