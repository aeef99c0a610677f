"""Committing together: every process writes the chunks that it owns, process 0 publishes.

What is said (`Conversation`), after parts were exchanged between devices:

1. Each process sends the digests of its chunks to process 0, which knows by them
   which leaves are new and how each is best stored.
2. Process 0 sends out what is to be written. Each process writes what it owns,
   makes that durable, and says so.
3. Process 0 writes packs, headers, manifest and commit, moves the ref, and sends
   the commit's digest. A leaf object exists once its header does, and a commit
   once the ref points to it: whoever dies before leaves only what nothing refers to.

Step 2 comes again if somebody else pruned, meanwhile, what the plan counted on.
All of this is plain messages, so it may run in the background (`vcjax.processes.conversation`
says why); the exchange (`hold`) may not, and is done before `commit_async` returns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vcjax import hashing, processes, tree
from vcjax.errors import ProcessError, RepositoryError
from vcjax.hashing import LeafDigest, digest_bytes
from vcjax.hashing.digests import encode_value
from vcjax.history import LeafEntry, Manifest
from vcjax.history.manifest import check_depth
from vcjax.history.refnames import HEAD
from vcjax.objects import Order, PartWriter, SharedPlan, StagedLeaf
from vcjax.objects.layout import PACKED_BYTES
from vcjax.processes import Part
from vcjax.processes.conversation import Conversation
from vcjax.repo.snapshot import unshared
from vcjax.storage import Store


@dataclass(frozen=True, eq=False)
class Held:
    """What this process has of a tree that all processes commit.

    Attributes:
        root: the flattened tree; arrays without their data.
        spanning: leaf paths of the arrays on devices of several processes.
        parts: what this process owns, by leaf path.
        copies: digests of other leaves, which every process has, where this one
            does not own them, by leaf path.
        alone: leaf paths that are only for process 0 to commit.
    """

    root: Any
    spanning: frozenset[str]
    parts: Mapping[str, Sequence[Part]]
    copies: Mapping[str, bytes]
    alone: frozenset[str]

    @cached_property
    def leaves(self) -> dict[str, tree.Leaf]:
        """{leaf path: leaf}, in tree order."""
        return tree.leaf_dict(self.root)

    @cached_property
    def paths(self) -> list[str]:
        """All leaf paths; the first of them, which all processes have, are numbered alike."""
        return sorted(self.leaves, key=lambda path: path in self.alone)

    @cached_property
    def chunks(self) -> dict[str, list[bytes]]:
        """The digests of the chunks that this process owns, by leaf path."""
        return {
            path: processes.chunk_digests(self.leaves[path].spec, parts)
            for path, parts in self.parts.items()
        }

    @cached_property
    def outline(self) -> list[list[Any]]:
        """What all processes must agree on, as MessagePack types: path and spec of every leaf."""
        return [
            [path, leaf.spec.dtype, list(leaf.spec.shape), leaf.spec.home, path in self.spanning]
            for path, leaf in self.leaves.items()
            if path not in self.alone
        ]

    def told(self) -> dict[str, Any]:
        """The first message to process 0."""
        numbers = {path: number for number, path in enumerate(self.paths)}
        return {
            "outline": digest_bytes(hashing.pack(self.outline)),
            "copies": [[numbers[path], digest] for path, digest in self.copies.items()],
            "chunks": [
                [numbers[path], [[part.first, part.chunks] for part in parts], self.chunks[path]]
                for path, parts in self.parts.items()
            ],
        }


def hold(
    talk: Conversation,
    root: Any,
    timeout_s: float,
    copy: bool,
    from_first: Sequence[str] = (),
) -> Held:
    """Brings what this process owns to its host memory.

    All processes call this together, on the threads that run their training steps.

    Args:
        talk: of the processes.
        root: the flattened tree.
        timeout_s: how long another process may take for its part of an exchange.
        copy: whether NumPy arrays are copied, as the caller may write to them.
        from_first: globs of leaves that only process 0 commits.
    """
    check_depth(root)
    leaves = tree.leaf_dict(root)
    spanning = {path: leaf for path, leaf in leaves.items() if tree.is_spanning(leaf.data)}
    parts: dict[str, Sequence[Part]] = {}
    if spanning:
        talk.meet()
    parts |= processes.own_parts(spanning, PACKED_BYTES, timeout_s)
    others = {path: leaf for path, leaf in leaves.items() if path not in spanning}
    globs = [tree.pattern(glob) for glob in from_first]
    alone = frozenset(path for path in others if any(glob.match(path) for glob in globs))
    copies: dict[str, bytes] = {}
    if talk.index == 0:
        for path, leaf in others.items():
            if not leaf.spec.is_value:
                parts[path] = processes.whole_part(unshared(leaf) if copy else leaf)
    else:
        found = hashing.iter_digests(
            {path: leaf for path, leaf in others.items() if path not in alone}
        )
        copies = {path: digest.leaf for path, digest in found}

    def bare(path: str, leaf: tree.Leaf) -> tree.Leaf:
        return leaf if leaf.spec.is_value else tree.Leaf(leaf.spec, None)

    return Held(tree.map_leaves(bare, root), frozenset(spanning), parts, copies, alone)


def held_bytes(root: Any, count: int) -> int:
    """About how many bytes `hold` with `copy` takes on one of `count` processes."""
    total = 0
    for leaf in tree.leaf_dict(root).values():
        if isinstance(leaf.data, np.ndarray):
            total += leaf.data.nbytes
        elif tree.is_remote(leaf.data):
            total += leaf.data.nbytes // count
    return total


def follow(talk: Conversation, held: Held, store: Store, compress: bool) -> str:
    """The part of every process but 0; the digest of the commit.

    Raises:
        ProcessError: another process failed or died.
        VcjaxError: what process 0 raised.
    """
    talk.send(held.told())
    while True:
        asked = talk.receive(0)
        if "commit" in asked:
            return asked["commit"]
        if "describe" in asked:
            talk.send(held.outline)
            continue
        if asked["head"] != head_of(store):
            raise RepositoryError(
                f"{store.url} on process {talk.index} is not the repository that process 0 has",
                hint="the processes need one folder or bucket that all of them see; "
                "if each has its own, open it with local=True",
            )
        orders = [Order.from_list(fields) for fields in asked["write"]]
        write(held, orders, store, compress)
        talk.send(None)


def head_of(store: Store) -> bytes:
    """What tells a repository from another one: its `HEAD` holds a nonce."""
    return digest_bytes(store.read(HEAD) or b"")


def write(held: Held, orders: Sequence[Order], store: Store, compress: bool) -> None:
    """Writes what this process owns of what is asked for, durably."""
    writer = PartWriter(store, compress)
    for order in orders:
        if order.path in held.parts:
            writer.write(order, held.leaves[order.path].spec, held.parts[order.path])
    writer.finish()


class Leader:
    """The part of process 0.

    Raises:
        ProcessError: another process failed, died, or has another tree.
    """

    def __init__(self, talk: Conversation, held: Held, store: Store, compress: bool):
        self._talk = talk
        self._held = held
        self._store = store
        self._compress = compress
        self._digests = self._gathered()

    def stage(self, before: Manifest | None) -> Manifest:
        """Has all processes write what is new, and says where everything is.

        Args:
            before: the manifest of the commit that this one follows.
        """
        former = before.leaves if before else {}
        leaves = {
            path: StagedLeaf(self._with_data(path), digest, former.get(path))
            for path, digest in self._digests.items()
        }
        known = before.locations if before else {}
        plan = SharedPlan(self._store, self._compress, leaves, known)
        asked = {"write": [order.to_list() for order in plan.orders], "head": head_of(self._store)}
        self._talk.send(asked)
        write(self._held, plan.orders, self._store, self._compress)
        for process in self._talk.others:
            self._talk.receive(process)
        entries = plan.conclude()

        def entry(path: str, leaf: tree.Leaf) -> LeafEntry:
            if path in entries:
                return entries[path]
            digest = hashing.value_digest(leaf.spec.dtype, leaf.data).hex()
            return LeafEntry(leaf.spec, digest, inline=encode_value(leaf.data), is_inline=True)

        return Manifest(tree.map_leaves(entry, self._held.root))

    def _with_data(self, path: str) -> tree.Leaf:
        """A leaf, with its data if this process owns all of it."""
        spec, parts = self._held.leaves[path].spec, self._held.parts.get(path, ())
        if len(parts) == 1 and parts[0].data.shape == spec.shape:
            return tree.Leaf(spec, parts[0].data)
        empty = 0 in spec.shape
        return tree.Leaf(
            spec, np.empty(spec.shape, tree.storage_dtype(spec.dtype)) if empty else None
        )

    def _gathered(self) -> dict[str, LeafDigest]:
        """The digests of all array leaves, from those of their chunks on all processes."""
        told = [self._held.told(), *map(self._talk.receive, self._talk.others)]
        outlines = {one["outline"] for one in told}
        if len(outlines) > 1:
            self._refuse_outlines()
        paths = self._held.paths
        chunks: dict[str, dict[int, bytes]] = {
            path: {} for path, leaf in self._held.leaves.items() if not leaf.spec.is_value
        }
        for one in told:
            for number, spans, hashes in one["chunks"]:
                places = (at for first, count in spans for at in range(first, first + count))
                known = chunks[paths[number]]
                for at, digest in zip(places, hashes, strict=True):
                    known[at] = digest
        digests: dict[str, LeafDigest] = {}
        for path, found in chunks.items():
            spec = self._held.leaves[path].spec
            ordered = [found[at] for at in range(len(found))]
            digests[path] = hashing.joined_digest(spec.dtype, spec.shape, ordered)
        self._refuse_copies(told[1:], digests)
        return digests

    def _refuse_outlines(self) -> None:
        """Raises, naming the leaves that not all processes have alike."""
        self._talk.send({"describe": True})
        mine = {path: rest for path, *rest in self._held.outline}
        for process in self._talk.others:
            theirs = {path: rest for path, *rest in self._talk.receive(process)}
            differing = [
                path
                for path in dict.fromkeys([*mine, *theirs])
                if mine.get(path) != theirs.get(path)
            ]
            if differing:
                raise _disagreement(process, "has a tree with other leaves", differing)

    def _refuse_copies(
        self, told: Sequence[Mapping[str, Any]], digests: Mapping[str, LeafDigest]
    ) -> None:
        """Raises if a leaf that every process has is not the same everywhere."""
        paths, leaves = self._held.paths, self._held.leaves
        for process, one in enumerate(told, 1):
            differing = []
            for number, digest in one["copies"]:
                path, leaf = paths[number], leaves[paths[number]]
                own = digests[path].leaf if path in digests else None
                if digest != (own or hashing.value_digest(leaf.spec.dtype, leaf.data)):
                    differing.append(path)
            if differing:
                raise _disagreement(process, "has other values", differing)


def _disagreement(process: int, what: str, paths: Sequence[str]) -> ProcessError:
    listed = "".join(f"\n  {path}" for path in paths[:20])
    more = f"\n  … and {len(paths) - 20} more" if len(paths) > 20 else ""
    return ProcessError(
        f"process {process} {what} than process 0:{listed}{more}",
        hint="every process must commit the same tree: NumPy arrays and Python values alike, "
        "the shards of one jax.Array each",
        path=paths[0],
    )
