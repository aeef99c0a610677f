"""Items that Orbax saved, as trees whose arrays are read when they are needed.

Every array is opened through TensorStore on its own, so that no more than one of
them need be in memory. What the containers were is in Orbax's `_METADATA`: by
default it tells lists from dicts, and nothing else; with Orbax's rich types also
tuples and namedtuples.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcjax import tree
from vcjax.orbax.files.array_folder import SavedArrays, SavedValue, damaged, load_json
from vcjax.orbax.files.steps import (
    AGGREGATE,
    MARKERS,
    PYTREE_METADATA,
    STEP_METADATA,
    SavedItem,
    read_json_item,
)
from vcjax.tree import LazyArray, Leaf, LeafSpec, Node


@dataclass(frozen=True)
class SavedTree:
    """One item.

    Attributes:
        root: as `vcjax.tree.flatten` gives it, with arrays that are read when needed.
        custom_metadata: what the user noted with it, or None.
        shardings: (sharding as Orbax serialises it, ranges of leaves), of leaves on
            meshes of two or more devices.
    """

    root: Any
    custom_metadata: Any = None
    shardings: Sequence[tuple[str, list[list[int]]]] = ()


_EMPTY: dict[str, Node] = {
    "None": Node("none"),
    "Dict": Node("dict"),
    "List": Node("list"),
    "Tuple": Node("tuple"),
    "NamedTuple": Node("none"),  # as Orbax restores it
}
"""What Orbax calls containers without children."""

_EMPTY_NAMEDTUPLE = Node("namedtuple", name="orbax.checkpoint:OrbaxEmptyNamedTuple")
"""Its class is not on record."""

_PLACEHOLDERS = ("PLACEHOLDER://", "AGGREGATED://")

_IMPLEMENTATIONS = {2: "threefry2x32", 4: "rbg"}
"""PRNG implementations by the number of words of a key."""


def read_item(item: SavedItem) -> SavedTree:
    """The tree of an item.

    Raises:
        FormatError: it is damaged, or lacks a part.
    """
    return _READERS[item.kind](item.folder)


def as_dict(children: Mapping[str, object]) -> Node:
    """The node of a dict."""
    keys = tuple(sorted(children))
    return Node("dict", keys, tuple(children[key] for key in keys))


# -- trees -----------------------------------------------------------------------


def _read_pytree(folder: Path) -> SavedTree:
    if not (folder / PYTREE_METADATA).is_file():
        return _read_aggregate(folder)
    described = load_json(folder / PYTREE_METADATA)
    with damaged(folder / PYTREE_METADATA):
        root = _structure(described)
        source = SavedArrays(
            folder,
            bool(described.get("use_zarr3")),
            described.get("use_ocdbt"),
            bool(described.get("store_array_data_equal_to_fill_value")),
        )
    custom = described.get("custom_metadata")
    return SavedTree(source.fill(root), custom, source.shardings(root))


def _structure(described: Mapping[str, Any]) -> Any:
    """The tree in `_METADATA`, with a `SavedValue` at each leaf."""
    rich = described.get("value_metadata_tree")
    if isinstance(rich, str):
        return _rich(json.loads(rich), ())
    root: dict[tuple[int, str], Any] = {}
    leaf = None
    for entry in described["tree_metadata"].values():
        keys = [(part["key_type"], str(part["key"])) for part in entry["key_metadata"]]
        value = _value(entry["value_metadata"], [key for _, key in keys], _EMPTY)
        if not keys:
            leaf = value
            continue
        node = root
        for key in keys[:-1]:
            below = node.get(key)
            if not isinstance(below, dict):  # what was empty was filled by a later partial save
                below = node[key] = {}
            node = below
        if not isinstance(node.get(keys[-1]), dict):
            node[keys[-1]] = value
    return _nested(root) if root or leaf is None else leaf


_SEQUENCE = 1
"""Orbax's number for the keys of lists; all others are keys of dicts."""


def _nested(node: object) -> object:
    if not isinstance(node, dict):
        return node
    if node and all(kind == _SEQUENCE for kind, _ in node):
        ordered = sorted(node, key=lambda key: int(key[1]))
        if [int(key) for _, key in ordered] == list(range(len(ordered))):
            children = tuple(_nested(node[key]) for key in ordered)
            return Node("list", tuple(range(len(ordered))), children)
    return as_dict({key: _nested(child) for (_, key), child in node.items()})


def _rich(found: Any, keys: tuple[str, ...]) -> Any:
    """The same of Orbax's rich types."""

    def below(children: Sequence[tuple[Any, Any]]) -> tuple[Any, ...]:
        return tuple(_rich(child, (*keys, str(key))) for key, child in children)

    if isinstance(found, list):
        return Node("list", tuple(range(len(found))), below(list(enumerate(found))))
    category = found.get("category")
    if category == "custom" and found["clazz"] == "tuple":
        entries = list(enumerate(found["entries"]))
        return Node("tuple", tuple(range(len(entries))), below(entries))
    if category == "custom":
        return _value(found["data"], keys, _EMPTY | {"NamedTuple": _EMPTY_NAMEDTUPLE})
    if category == "namedtuple":
        entries = [(entry["key"], entry["value"]) for entry in found["entries"]]
        name = f"{found['module']}:{found['clazz']}"
        return Node("namedtuple", tuple(key for key, _ in entries), below(entries), name)
    entries = sorted(found.items())
    return Node("dict", tuple(key for key, _ in entries), below(entries))


def _value(
    described: Mapping[str, Any], keys: Sequence[str], empty: Mapping[str, Node]
) -> SavedValue | Node:
    kind = described["value_type"]
    return empty[kind] if kind in empty else SavedValue(kind, ".".join(keys))


def _read_aggregate(folder: Path) -> SavedTree:
    """A tree whose structure, and small leaves, are in a msgpack file, as Orbax had it at first."""
    from vcjax.formats import format_named

    stored = format_named("msgpack").read(folder / AGGREGATE).tree

    def leaf(path: str, leaf: Leaf) -> Any:
        for prefix in _PLACEHOLDERS:
            if isinstance(leaf.data, str) and leaf.data.startswith(prefix):
                return SavedValue("np.ndarray", leaf.data.removeprefix(prefix))
        return leaf

    root = tree.map_leaves(leaf, tree.flatten(stored))
    return SavedTree(SavedArrays(folder, False, None, False).fill(root))


# -- other items -----------------------------------------------------------------


def _read_array(folder: Path) -> SavedTree:
    found = _read_pytree(folder)
    [leaf] = tree.leaf_dict(found.root).values()
    return SavedTree(leaf, found.custom_metadata, found.shardings)


def _read_jax_key(folder: Path) -> SavedTree:
    leaf = _read_array(folder / "jax_random_key").root
    name = leaf.spec.dtype
    if read_json_item(folder / "jax_random_key_metadata").get("typed"):
        # Orbax does not note the implementation, and wraps the words in the default one.
        name = f"key<{_IMPLEMENTATIONS[leaf.spec.shape[-1]]}>"
    return SavedTree(Leaf(LeafSpec(name, leaf.spec.shape, "jax"), leaf.data))


def _read_np_key(folder: Path) -> SavedTree:
    root = _read_pytree(folder / "np_random_key").root
    legacy = read_json_item(folder / "np_random_key_metadata").get("legacy")
    return SavedTree(Node("tuple", root.keys, root.children) if legacy else root)


def _read_json(folder: Path) -> SavedTree:
    return SavedTree(tree.flatten(read_json_item(folder)))


def _read_files(folder: Path) -> SavedTree:
    """The files of a handler of its own: arrays of bytes, in dicts that are the folders."""
    return SavedTree(_files(folder, besides=(*MARKERS, STEP_METADATA)))


def _files(folder: Path, besides: Sequence[str] = MARKERS) -> Node:
    entries = {path.name: path for path in folder.iterdir() if path.name not in besides}
    return as_dict(
        {
            name: _files(path) if path.is_dir() else _file_leaf(path)
            for name, path in entries.items()
        }
    )


def _file_leaf(path: Path) -> Leaf:
    size = path.stat().st_size

    def read() -> np.ndarray:
        return np.fromfile(path, np.uint8)

    return Leaf(LeafSpec("uint8", (size,), "numpy"), LazyArray((size,), np.dtype("uint8"), read))


_READERS: dict[str, Callable[[Path], SavedTree]] = {
    "pytree": _read_pytree,
    "array": _read_array,
    "jax_random_key": _read_jax_key,
    "np_random_key": _read_np_key,
    "json": _read_json,
    "files": _read_files,
}
