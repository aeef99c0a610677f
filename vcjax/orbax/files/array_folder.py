"""The arrays of one folder that Orbax wrote, opened one by one through TensorStore."""

import base64
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from vcjax import tree
from vcjax.errors import FormatError, VcjaxError
from vcjax.tree import Home, LazyArray, Leaf, LeafSpec, Node

STRINGS, SHARDINGS = "_strings.json", "_sharding"

_PYTHON = ("bool", "int64", "float64", "uint64")
"""dtypes in which Orbax stores Python numbers; other scalars were NumPy's."""

_HOMES: dict[str, Home] = {"jax.Array": "jax", "np.ndarray": "numpy", "scalar": "scalar"}

_CONTEXT = {
    "file_io_concurrency": {"limit": 2},
    "data_copy_concurrency": {"limit": 1},
    "cache_pool": {"total_bytes_limit": 0},
    "cache_pool#ocdbt": {"total_bytes_limit": 16 * 1024 * 1024},
}
"""Chunks are read once, and not kept; the index of OCDBT is read for every array."""


@dataclass(frozen=True)
class SavedValue:
    """What `_METADATA` says of a leaf."""

    kind: str
    name: str


SavedRoot = Node | SavedValue
"""A tree with a `SavedValue` at each leaf that has one."""


class SavedArrays:
    """The arrays of one folder.

    Args:
        folder: where they are.
        zarr3: whether they are zarr v3 arrays; else v2.
        ocdbt: whether they are in one OCDBT database; None: look.
        complete: whether every chunk was written, so that one that lacks is damage.
    """

    def __init__(self, folder: Path, zarr3: bool, ocdbt: bool | None, complete: bool):
        self._folder = folder
        self._zarr3 = zarr3
        has_database = (folder / "manifest.ocdbt").is_file()
        self._ocdbt = has_database if ocdbt is None else ocdbt
        self._complete = complete
        self._context = ts.Context(_CONTEXT)
        self._impls = _key_implementations(folder)

    def shardings(self, root: SavedRoot) -> list[tuple[str, list[list[int]]]]:
        """(Sharding as Orbax serialises it, ranges [start, stop) of leaves in tree order).

        Only of leaves on meshes of two or more devices, as `CheckpointManager` notes them.

        Args:
            root: the tree, with a `SavedValue` at each leaf that has one.
        """
        found = load_json(self._folder / SHARDINGS) if (self._folder / SHARDINGS).exists() else {}
        ranges: dict[str, list[list[int]]] = {}
        for index, (_, value) in enumerate(tree.iter_leaves(root)):
            name = value.name if isinstance(value, SavedValue) else ""
            text = found.get(base64.b64encode(name.encode()).decode())
            if not isinstance(text, str) or not _is_on_a_mesh(text):
                continue
            spans = ranges.setdefault(text, [])
            if spans and spans[-1][1] == index:
                spans[-1][1] = index + 1
            else:
                spans.append([index, index + 1])
        return list(ranges.items())

    def fill(self, root: SavedRoot) -> Node | Leaf:
        """The tree with a `Leaf` in the place of each `SavedValue`."""
        found = tree.leaf_dict(root)
        values = {path: value for path, value in found.items() if isinstance(value, SavedValue)}
        opening: dict[str, Any] = {}
        for path, value in values.items():
            if value.kind != "string":
                with self._errors(path, value):
                    opening[path] = self._open(value.name)
        leaves: dict[str, Leaf] = {}
        for path, value in values.items():
            if path in opening:
                with self._errors(path, value):
                    leaves[path] = self._leaf(path, value, opening[path].result())
            else:
                leaves[path] = tree.make_leaf(self._string(path, value.name), path)
        return tree.map_leaves(lambda path, leaf: leaves.get(path, leaf), root)

    def _open(self, name: str) -> Any:
        kvstore: dict[str, Any] = {"driver": "file", "path": f"{self._folder}/{name}/"}
        if self._ocdbt:
            base = {"driver": "file", "path": f"{self._folder}/"}
            kvstore = {
                "driver": "ocdbt",
                "base": base,
                "path": name,
                "cache_pool": "cache_pool#ocdbt",
            }
        spec = {
            "driver": "zarr3" if self._zarr3 else "zarr",
            "kvstore": kvstore,
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
            "fill_missing_data_reads": not self._complete,
        }
        return ts.open(spec, open=True, read=True, context=self._context)

    def _leaf(self, path: str, value: SavedValue, array: ts.TensorStore) -> Leaf:
        shape, dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
        name = tree.dtype_name(dtype)
        if value.kind == "scalar" and shape == ():
            number = np.asarray(array.read().result())
            return tree.make_leaf(number.item() if name in _PYTHON else number[()], path)
        impl = self._impls.get(value.name)
        spec = LeafSpec(f"key<{impl}>" if impl else name, shape, _HOMES.get(value.kind, "numpy"))

        def read() -> np.ndarray:
            with self._errors(path, value):
                return np.asarray(array.read(order="C").result())

        return Leaf(spec, LazyArray(shape, dtype, read))

    def _string(self, path: str, name: str) -> str:
        found: Any = load_json(self._folder / STRINGS)
        for part in name.split("/"):  # the name is used as a JSON pointer
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, str):
            raise FormatError(
                f"leaf {path!r}: {str(self._folder / STRINGS)!r} has no text for it", path=path
            )
        return found

    @contextmanager
    def _errors(self, path: str, value: SavedValue) -> Iterator[None]:
        try:
            yield
        except VcjaxError:
            raise
        except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
            hint = "the checkpoint is damaged; move that step away to import the others"
            if value.kind not in _HOMES:
                hint = f"a type handler of its own for {value.kind!r} wrote it"
            raise FormatError(
                f"leaf {path!r} in {str(self._folder)!r} cannot be read: {error}",
                hint=hint,
                path=path,
            ) from error


def _is_on_a_mesh(text: str) -> bool:
    """Whether a serialised sharding is over two or more devices."""
    try:
        fields = json.loads(text)
        return fields["sharding_type"] == "NamedSharding" and math.prod(fields["shape"]) > 1
    except (ValueError, LookupError, TypeError):  # of a kind that Orbax cannot restore either
        return False


def _key_implementations(folder: Path) -> dict[str, str]:
    """PRNG implementations by the name of the array, for typed keys."""
    found = {}
    for path in sorted(folder.glob("array_metadatas/process_*")):
        with damaged(path):
            for entry in load_json(path)["array_metadatas"]:
                described = entry["array_metadata"]
                impl = (described.get("ext_metadata") or {}).get("random_key_impl")
                if impl:
                    found[described["param_name"]] = impl
    return found


def load_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FormatError: it is no JSON, or cannot be read.
    """
    with damaged(path):
        return json.loads(path.read_bytes())


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is taken apart into an error that names it.

    Raises:
        FormatError: the block raised what parsers raise.
    """
    try:
        yield
    except VcjaxError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{str(path)!r} is damaged: {error!r}", hint="move that step away to import the others"
        ) from error
