"""What a PyTree looks like without its data: nodes, leaf specs and leaf paths.

Plain Python, so that reading history never needs JAX. A `Node` tree is used
with three payloads at its leaves: `vcjax.tree.Leaf` (data in memory),
`LeafSpec` (abstract) and `vcjax.history.LeafEntry` (stored).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vcjax import errors
from vcjax.tree import dtypes

Key = str | int | float | bool | bytes | tuple["Key", ...]
"""What may be a key of a dict in a tree."""

Home = Literal["jax", "numpy", "scalar", "python"]

NODE_KINDS = (
    "dict",  # keys: dict keys, sorted
    "ordereddict",  # keys: dict keys, in insertion order
    "defaultdict",  # keys: dict keys, sorted; the factory is not kept
    "frozendict",  # flax.core.FrozenDict
    "list",  # keys: 0 … n-1
    "tuple",  # keys: 0 … n-1
    "namedtuple",  # keys: field names; name: "module:Qualified.Name"
    "none",  # no children
    "nnx_state",  # flax.nnx.State (and whole nnx.Modules); nested states included
    # Any other registered PyTree class; keys: fields or indices; name as above. Also an
    # nnx.Variable whose value is not one leaf but a tree; its only key is "value".
    "custom",
)


@dataclass(frozen=True, slots=True)
class LeafSpec:
    """What a leaf is, apart from its content.

    Attributes:
        dtype: NumPy/ml_dtypes name ("float32", "bfloat16", "int4", …),
            "key<IMPL>" for a typed PRNG key (the data are its uint32 words), or
            for a Python value its type: "int", "float", "bool", "complex",
            "str", "bytes".
        shape: of the data; for PRNG keys of `jax.random.key_data`. `()` for values.
        home: where the leaf lived: a `jax.Array`, a NumPy array, a NumPy scalar
            or a plain Python value.
        variable: the type of the `nnx.Variable` that held it, for example
            "flax.nnx.variablelib:Param".
    """

    dtype: str
    shape: tuple[int, ...] = ()
    home: Home = "jax"
    variable: str | None = None

    @property
    def is_value(self) -> bool:
        """Whether the leaf is a Python value and not an array."""
        return self.home == "python"

    @property
    def has_mean(self) -> bool:
        """Whether merges average it: floating point and complex arrays, and nothing else.

        Step counters, masks, PRNG keys and text have no mean; plain Python values are
        settings, and stay what they are.
        """
        return not self.is_value and dtypes.is_inexact(self.dtype)

    def __str__(self) -> str:
        if self.is_value:
            return self.dtype
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Node:
    """An inner node of a tree: its kind, its keys and what is below them.

    Attributes:
        kind: one of `NODE_KINDS`.
        keys: one per child. Indices for sequences, names for fields.
        children: `Node`s or leaf payloads.
        name: "module:Qualified.Name" of the class for namedtuple and custom.
    """

    kind: str
    keys: tuple[Key, ...] = ()
    children: tuple[Any, ...] = ()
    name: str = ""


def escape(key: Key) -> str:
    """One segment of a leaf path for a key; `%` and `/` are percent-encoded (RFC 3986).

    Otherwise it is what `jax.tree_util.keystr(…, simple=True)` shows: `str(key)`.
    """
    return str(key).replace("%", "%25").replace("/", "%2F")


def join(path: str | None, key: Key) -> str:
    """The path of the child under `key` of the node at `path` (None for the root)."""
    segment = escape(key)
    return segment if path is None else f"{path}/{segment}"


def unescape(segment: str) -> str:
    """The key text that `escape` made a path segment from."""
    return segment.replace("%2F", "/").replace("%25", "%")


def iter_leaves(root: object, prefix: str | None = None) -> Iterator[tuple[str, Any]]:
    """All leaves below `root` as (leaf path, payload), in tree order.

    The path of a tree that is a single leaf is the empty string.
    """
    stack: list[tuple[str | None, object]] = [(prefix, root)]
    while stack:
        path, node = stack.pop()
        if not isinstance(node, Node):
            yield path or "", node
            continue
        for key, child in zip(reversed(node.keys), reversed(node.children), strict=True):
            stack.append((join(path, key), child))


def leaf_dict(root: object) -> dict[str, Any]:
    """All leaves below `root` as {leaf path: payload}.

    Raises:
        TreeError: two leaves have the same path.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in iter_leaves(root):
        if path in leaves:
            raise errors.TreeError(
                f"two leaves have the path {path!r}",
                path=path,
                hint="give the keys of that container different string forms",
            )
        leaves[path] = leaf
    return leaves


def map_leaves(function: Callable[[str, Any], Any], root: object, path: str | None = None) -> Any:
    """The same tree with every payload replaced by `function(path, payload)`."""
    if not isinstance(root, Node):
        return function(path or "", root)
    children = tuple(
        map_leaves(function, child, join(path, key))
        for key, child in zip(root.keys, root.children, strict=True)
    )
    return Node(root.kind, root.keys, children, root.name)
