"""Which leaves differ between stored manifests, decoding no more of them than MessagePack.

Every node of a stored manifest has its digest beside it, so subtrees that are
equal are skipped. A `Manifest` would be four times as slow to make: whoever goes
through a thousand commits reads their trees with this.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vcjax.errors import CorruptionError
from vcjax.hashing import chunk_count
from vcjax.history import canonical
from vcjax.history.commit import Commit
from vcjax.history.database import History
from vcjax.history.manifest import DIGEST_BYTES, decode_key
from vcjax.tree import LeafSpec, join, storage_dtype

KEPT = 16
"""How many trees `StoredTrees` keeps: more than lines of development are walked at once."""

Fields = Mapping[str, Any]
"""A node of a manifest as it is stored (docs/format.md)."""

Trees = Callable[[Commit], Fields]


class StoredTrees:
    """The trees of commits as they are stored; the last few are kept."""

    def __init__(self, history: History):
        self._history = history
        self._kept: OrderedDict[str, Fields] = OrderedDict()

    def __call__(self, commit: Commit) -> Fields:
        """The root of the tree of a commit.

        Raises:
            CorruptionError: its manifest is damaged.
            MissingObjectError: it is gone.
        """
        digest = commit.manifest
        if digest not in self._kept:
            data = self._history.manifest_bytes(digest)
            fields = canonical.decode("manifest", 1, digest, data)
            self._kept[digest] = fields.get("root", {})
        self._kept.move_to_end(digest)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[digest]


@dataclass(frozen=True, slots=True)
class StoredLeaf:
    """A leaf of a stored manifest.

    Attributes:
        fields: as it is stored.
    """

    fields: Fields

    @property
    def digest(self) -> str:
        """Leaf digest, 64 hex digits."""
        return self.fields["digest"].hex()

    @property
    def spec(self) -> LeafSpec:
        """Dtype, shape, home."""
        fields = self.fields
        return LeafSpec(
            fields["dtype"], tuple(fields["shape"]), fields["home"], fields.get("variable")
        )

    @property
    def nbytes(self) -> int:
        """Size of the content in memory, bytes; 0 for plain values."""
        if self.fields["home"] == "python":
            return 0
        size = storage_dtype(self.fields["dtype"]).itemsize
        for length in self.fields["shape"]:
            size *= length
        return size

    @property
    def chunks(self) -> tuple[bytes, ...]:
        """A digest per chunk; of a leaf that has one chunk, the leaf's own."""
        text = self.fields.get("chunks", b"")
        if not text:
            return (self.fields["digest"],)
        return tuple(text[i : i + DIGEST_BYTES] for i in range(0, len(text), DIGEST_BYTES))

    @property
    def chunk_count(self) -> int:
        """How many chunks it has; 1 for plain values and empty leaves too."""
        if self.fields["home"] == "python":
            return 1
        itemsize = storage_dtype(self.fields["dtype"]).itemsize
        return max(1, chunk_count(tuple(self.fields["shape"]), itemsize))


def stored_leaves(root: Fields) -> Iterator[tuple[str, StoredLeaf]]:
    """All leaves of a tree as (leaf path, leaf), in tree order."""
    for path, _, leaf in changed_leaves(None, root):
        if leaf is not None:
            yield path, leaf


def changed_leaves(
    old: Fields | None, new: Fields | None
) -> Iterator[tuple[str, StoredLeaf | None, StoredLeaf | None]]:
    """The leaves whose content differs, as (leaf path, before, after), in tree order.

    Args:
        old: the root of a tree, None for no tree at all.
        new: likewise.

    Raises:
        CorruptionError: a node lacks what it must have.
    """
    try:
        yield from _changed(old, new)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CorruptionError(
            f"a manifest lacks or garbles {error!r}", hint="`vcjax fsck` says which"
        ) from error


def _changed(
    old: Fields | None, new: Fields | None
) -> Iterator[tuple[str, StoredLeaf | None, StoredLeaf | None]]:
    stack: list[tuple[str | None, Fields | None, Fields | None]] = [(None, old, new)]
    while stack:
        path, one, other = stack.pop()
        if one is not None and other is not None and one["digest"] == other["digest"]:
            continue
        before = StoredLeaf(one) if one is not None and "children" not in one else None
        after = StoredLeaf(other) if other is not None and "children" not in other else None
        if before or after:
            yield path or "", before, after
        olds = _children(path, one)
        news = _children(path, other)
        names = [*news, *(name for name in olds if name not in news)] if olds else list(news)
        stack.extend((name, olds.get(name), news.get(name)) for name in reversed(names))


def _children(path: str | None, fields: Fields | None) -> dict[str, Fields]:
    """{path: node} of what is below a node."""
    if fields is None or "children" not in fields:
        return {}
    children = fields["children"]
    keys = fields.get("keys")
    keys = range(len(children)) if keys is None else map(decode_key, keys)
    return {join(path, key): child for key, child in zip(keys, children, strict=True)}


def moves(
    changed: Mapping[str, tuple[StoredLeaf | None, StoredLeaf | None]],
) -> dict[str, str]:
    """{new path: old path} of the leaves that only moved.

    Such a leaf is gone from its old path, and the same content is at a path that
    was not there before. Of several old paths with this content, the one is taken
    that ends as the new path does for the longest part.

    Args:
        changed: {leaf path: (before, after)}.
    """
    gone: dict[bytes, list[str]] = defaultdict(list)
    for path, (before, after) in changed.items():
        if before is not None and after is None:
            gone[before.fields["digest"]].append(path)
    found = {}
    for path, (before, after) in changed.items():
        if before is not None or after is None:
            continue
        candidates = gone.get(after.fields["digest"])
        if candidates:
            found[path] = max(candidates, key=lambda old: _common_end(old, path))
            candidates.remove(found[path])
    return found


def shifts(
    changed: Mapping[str, tuple[StoredLeaf | None, StoredLeaf | None]], old: Fields, new: Fields
) -> dict[str, str]:
    """{new path: old path} of leaves whose content has left a path and come to another.

    The old path may still be there, with another content, as when a layer was put in
    and `layers_3` became `layers_4`. Content that is in several places, such as the
    zeros of biases, shows nothing and does not count.

    Args:
        changed: {leaf path: (before, after)}.
        old: the root of the tree before.
        new: the root of the tree after.
    """
    left = {b.fields["digest"]: path for path, (b, _) in changed.items() if b is not None}
    found = {
        path: left[after.fields["digest"]]
        for path, (_, after) in changed.items()
        if after is not None and after.fields["digest"] in left
    }
    if not found:
        return {}
    counts = [Counter(leaf.fields["digest"] for _, leaf in stored_leaves(t)) for t in (old, new)]

    def once(path: str) -> bool:
        leaf = changed[path][1]
        return leaf is not None and all(count[leaf.fields["digest"]] == 1 for count in counts)

    return {path: origin for path, origin in found.items() if once(path)}


def _common_end(one: str, other: str) -> int:
    """How many parts two paths have in common at their ends."""
    count = 0
    for a, b in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if a != b:
            break
        count += 1
    return count
