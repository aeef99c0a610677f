"""Manifests: the tree of a commit, with the digest of every node and where each leaf lies."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np

from vcjax.errors import CorruptionError, TreeError, VcjaxError
from vcjax.hashing import chunk_count, digest_bytes, pack
from vcjax.hashing.digests import decode_value
from vcjax.history import canonical
from vcjax.history.listing import html_listing, text_listing
from vcjax.tree import NODE_KINDS, Home, Key, LeafSpec, Node, leaf_dict, storage_dtype

DIGEST_BYTES = canonical.DIGEST_BYTES

MAX_AXES = 64
"""How many axes an array of NumPy may have."""

MAX_KEY_DEPTH = 16
"""How many tuples may be in each other in the key of a dict."""


def manifest_key(digest: str) -> str:
    """Where the manifest with this digest is stored."""
    return f"manifests/{digest[:2]}/{digest}.msgpack"


@dataclass(frozen=True, slots=True)
class Packed:
    """Where a small leaf lies: `length` bytes at `offset` of a pack."""

    pack: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class LeafEntry:
    """A stored leaf.

    Attributes:
        spec: dtype, shape, home.
        digest: leaf digest, 64 hex digits.
        chunks: chunk digests, 32 bytes each, where there are two or more.
        inline: the canonical bytes of a tiny array, or a plain value in its
            stored form, when `is_inline`.
        packed: its place in a pack; None for an own leaf object.
        is_inline: whether the content is in the manifest itself.
    """

    spec: LeafSpec
    digest: str
    chunks: tuple[bytes, ...] = ()
    inline: Any = None
    packed: Packed | None = None
    is_inline: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the content in memory, in bytes; 0 for plain values."""
        if self.spec.is_value:
            return 0
        return math.prod(self.spec.shape) * storage_dtype(self.spec.dtype).itemsize

    @property
    def value(self) -> Any:
        """The plain value, or the small array, where it is in the manifest; else None."""
        if not self.is_inline:
            return None
        if self.spec.is_value:
            return decode_value(self.spec.dtype, self.inline)
        return np.frombuffer(self.inline, storage_dtype(self.spec.dtype)).reshape(self.spec.shape)

    @property
    def is_object(self) -> bool:
        """Whether the leaf has a leaf object of its own."""
        return not self.is_inline and self.packed is None


def _digests(root: Any, seen: dict[int, bytes]) -> tuple[bytes, dict[int, bytes]]:
    """Digests of `root` and, by id, of every inner node below it."""
    if not isinstance(root, Node):
        return bytes.fromhex(root.digest), seen
    children = [_digests(child, seen)[0] for child in root.children]
    header = ["vcjax.node.1", root.kind, root.name, [_encode_key(key) for key in root.keys]]
    digest = digest_bytes(pack([*header, children]))
    seen[id(root)] = digest
    return digest, seen


@dataclass(frozen=True)
class Manifest:
    """The tree of a commit.

    Attributes:
        root: a `Node` whose leaves are `LeafEntry`s, or a single `LeafEntry`.
        digest: of the stored manifest, 64 hex digits; empty before `encode`.
    """

    root: Any
    digest: str = field(default="", compare=False)

    @cached_property
    def leaves(self) -> dict[str, LeafEntry]:
        """{leaf path: entry}, in tree order."""
        return leaf_dict(self.root)

    @cached_property
    def _node_digests(self) -> tuple[bytes, dict[int, bytes]]:
        return _digests(self.root, {})

    @property
    def tree_digest(self) -> str:
        """Digest of the whole tree's content."""
        return self._node_digests[0].hex()

    @property
    def node_digests(self) -> Mapping[int, bytes]:
        """{id of an inner node: its digest}, 32 bytes each."""
        return self._node_digests[1]

    @property
    def nbytes(self) -> int:
        """Size of all leaves in memory, in bytes."""
        return sum(entry.nbytes for entry in self.leaves.values())

    @cached_property
    def locations(self) -> Mapping[str, LeafEntry]:
        """{leaf digest: entry}: what is stored already, for writing the next commit."""
        return {entry.digest: entry for entry in self.leaves.values()}

    @property
    def _title(self) -> str:
        name = self.digest[:8] or "not stored"
        return f"Manifest {name}: {len(self.leaves):,} leaves, {self.nbytes:,} bytes"

    def __repr__(self) -> str:
        rows = [(path or "(root)", str(entry.spec)) for path, entry in self.leaves.items()]
        return text_listing(f"<{self._title}>", rows)

    def _repr_html_(self) -> str:
        entries = self.leaves.items()
        rows = [(path or "(root)", str(entry.spec), entry.digest[:8]) for path, entry in entries]
        return html_listing(self._title, ("leaf", "shape", "digest"), rows)

    def encode(self) -> tuple[str, bytes]:
        """(digest, bytes) of this manifest as it is stored."""
        data = canonical.encode("manifest", 1, {"root": self._encode(self.root)})
        return digest_bytes(data).hex(), data

    def _encode(self, node: Any) -> dict[str, Any]:
        if not isinstance(node, Node):
            return _encode_entry(node)
        fields: dict[str, Any] = {  # keys in ascending order, as `pack` wants them
            "children": [self._encode(child) for child in node.children],
            "digest": self._node_digests[1][id(node)],
        }
        if node.kind not in ("list", "tuple"):
            fields["keys"] = [_encode_key(key) for key in node.keys]
        fields["kind"] = node.kind
        if node.name:
            fields["name"] = node.name
        return fields

    @classmethod
    def decode(cls, digest: str, data: bytes) -> "Manifest":
        """The manifest in some stored bytes.

        Raises:
            CorruptionError: they do not have this digest, or hold no sane manifest.
        """
        fields = canonical.decode("manifest", 1, digest, data)
        try:
            manifest = cls(_decode(fields["root"], 0), digest)
            _ = manifest.leaves  # raises if two leaves have the same path
            return manifest
        except TreeError as error:
            raise CorruptionError(f"manifest {digest[:8]}: {error.message}") from error
        except VcjaxError as error:
            error.message = f"manifest {digest[:8]}: {error.message}"
            raise
        except (
            *(LookupError, TypeError, ValueError, AttributeError),
            *(ArithmeticError, RecursionError, MemoryError),
        ) as error:
            raise CorruptionError(f"manifest {digest[:8]} lacks or garbles {error!r}") from error


def check_depth(root: Any) -> None:
    """Refuses trees too deep to be stored.

    Raises:
        TreeError: more than `canonical.MAX_DEPTH` levels.
    """
    level, depth = [root], 0
    while level := [child for node in level if isinstance(node, Node) for child in node.children]:
        depth += 1
        if depth > canonical.MAX_DEPTH:
            raise TreeError(
                f"the tree is more than {canonical.MAX_DEPTH} levels deep",
                hint="flatten it, for example with flax.traverse_util.flatten_dict",
            )


def _encode_key(key: Key, depth: int = 0) -> Any:
    """Keys that MessagePack tells apart stay as they are; the rest are tagged."""
    if isinstance(key, tuple):
        if depth > MAX_KEY_DEPTH:
            raise TreeError(f"a key is a tuple of more than {MAX_KEY_DEPTH} levels")
        return {"tuple": [_encode_key(part, depth + 1) for part in key]}
    if isinstance(key, int) and not isinstance(key, bool) and not -(2**63) <= key < 2**63:
        return {"int": format(key, "x")}
    return key


def decode_key(key: Any, depth: int = 0) -> Key:
    """The key of a container from its stored form; raises CorruptionError."""
    if isinstance(key, dict):
        if depth > MAX_KEY_DEPTH:
            raise CorruptionError(f"a key is a tuple of more than {MAX_KEY_DEPTH} levels")
        if "tuple" in key:
            return tuple(decode_key(part, depth + 1) for part in key["tuple"])
        return int(key["int"], 16)
    if not isinstance(key, str | int | float | bool | bytes):
        raise CorruptionError(f"{key!r} is no key of a tree")
    return key


def _encode_entry(entry: LeafEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {}  # keys in ascending order, as `pack` wants them
    if entry.chunks:
        fields["chunks"] = b"".join(entry.chunks)
    fields["digest"] = bytes.fromhex(entry.digest)
    fields["dtype"] = entry.spec.dtype
    fields["home"] = entry.spec.home
    if entry.is_inline:
        fields["inline"] = entry.inline
    if entry.packed is not None:
        place = entry.packed
        fields["pack"] = [bytes.fromhex(place.pack), place.offset, place.length]
    fields["shape"] = list(entry.spec.shape)
    if entry.spec.variable is not None:
        fields["variable"] = entry.spec.variable
    return fields


def _decode(fields: Any, depth: int) -> Any:
    if depth > canonical.MAX_DEPTH:
        raise CorruptionError(f"nested more than {canonical.MAX_DEPTH} levels")
    if not isinstance(fields, dict):
        raise CorruptionError(f"a {type(fields).__name__} is no node")
    if "children" not in fields:
        return _decode_entry(fields)
    if fields["kind"] not in NODE_KINDS:
        raise CorruptionError(f"unknown kind of node {fields['kind']!r}")
    children = tuple(_decode(child, depth + 1) for child in fields["children"])
    keys, name = fields.get("keys"), fields.get("name", "")
    keys = tuple(range(len(children))) if keys is None else tuple(map(decode_key, keys))
    if len(keys) != len(children):
        raise CorruptionError(f"a node has {len(keys)} keys for {len(children)} children")
    if not isinstance(name, str):
        raise CorruptionError(f"a node is called {name!r}")
    return Node(fields["kind"], keys, children, name)


_RULES: dict[str, Callable[[Any], bool]] = {
    "digest": canonical.is_raw_digest,
    "dtype": canonical.is_text,
    "home": lambda value: value in get_args(Home),
    "shape": lambda value: isinstance(value, list) and all(map(canonical.is_count, value)),
    "variable": lambda value: isinstance(value, str | None),
    "chunks": lambda value: isinstance(value, bytes | None),
    "pack": lambda value: value is None or _is_place(value),
}


def _is_place(value: Any) -> bool:
    pack, offset, length = value
    return canonical.is_raw_digest(pack) and all(map(canonical.is_count, (offset, length)))


def _decode_entry(fields: dict[str, Any]) -> LeafEntry:
    canonical.check_members("a leaf", fields, _RULES)
    spec = LeafSpec(fields["dtype"], tuple(fields["shape"]), fields["home"], fields.get("variable"))
    packed = None
    if "pack" in fields:
        pack, offset, length = fields["pack"]
        packed = Packed(pack.hex(), offset, length)
    text = fields.get("chunks", b"")
    chunks = tuple(text[i : i + DIGEST_BYTES] for i in range(0, len(text), DIGEST_BYTES))
    entry = LeafEntry(
        spec, fields["digest"].hex(), chunks, fields.get("inline"), packed, "inline" in fields
    )
    _check_entry(entry)
    return entry


def _check_entry(entry: LeafEntry) -> None:
    """Sizes must agree before anybody allocates memory on the word of a manifest."""
    spec = entry.spec
    if spec.is_value:
        if not entry.is_inline:
            raise CorruptionError(f"value {entry.digest[:8]} is not in the manifest")
        decode_value(spec.dtype, entry.inline)
        return
    width = storage_dtype(spec.dtype).itemsize
    check_shape(f"leaf {entry.digest[:8]}", spec.shape, width)
    count = chunk_count(spec.shape, width)
    if len(entry.chunks) != (count if count > 1 else 0):
        raise CorruptionError(
            f"leaf {entry.digest[:8]} claims to be {spec} but has {len(entry.chunks)} chunk digests"
        )
    held = entry.packed.length if entry.packed else entry.nbytes
    if entry.is_inline and not isinstance(entry.inline, bytes):
        raise CorruptionError(f"leaf {entry.digest[:8]} holds a {type(entry.inline).__name__}")
    if entry.is_inline:
        held = len(entry.inline)
    if held != entry.nbytes:
        raise CorruptionError(f"leaf {entry.digest[:8]} claims to be {spec} but has {held} bytes")


def check_shape(what: str, shape: Sequence[int], itemsize: int) -> None:
    """Refuses shapes of which no array can be.

    Args:
        what: has the shape, for the message.
        shape: lengths of the axes.
        itemsize: of an element, bytes.

    Raises:
        CorruptionError: there are more axes than NumPy has, or bytes than an address can say.
    """
    if len(shape) > MAX_AXES or math.prod(max(1, n) for n in shape) * itemsize >= 2**63:
        raise CorruptionError(f"{what} claims the shape {list(shape[:MAX_AXES])}")
