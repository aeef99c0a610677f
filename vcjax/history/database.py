"""Commits and manifests in a store: immutable, named by digest, cached."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from vcjax.errors import MissingObjectError
from vcjax.history.collection import Collecting
from vcjax.history.commit import Commit, commit_key
from vcjax.history.keys import is_record
from vcjax.history.manifest import Manifest, manifest_key
from vcjax.storage import Store

MANIFESTS_KEPT = 16

_HINT = "run `vcjax fsck`; restore the object from a copy of the repository"


class History:
    """The commits and manifests of a repository.

    Manifests of large trees are megabytes, so few are kept; commits are small.
    """

    def __init__(self, store: Store):
        self._store = store
        self._commits: dict[str, Commit] = {}
        self._lock = threading.Lock()  # background commits share the cache
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()

    def commit(self, digest: str) -> Commit:
        """The commit with this digest.

        Raises:
            MissingObjectError: there is none.
            CorruptionError: it is damaged.
        """
        if digest not in self._commits:
            data = self._read(commit_key(digest))
            if data is None:
                raise MissingObjectError(f"commit {digest[:8]} is gone", hint=_HINT)
            self._commits[digest] = Commit.decode(digest, data)
        return self._commits[digest]

    def _read(self, key: str) -> bytes | None:
        """What `Store.read` gives, a third of its time where a file is all there is to it.

        Of 1,000 commits one after the other: 10 ms of CPU, and 30 to 80 through TensorStore.
        """
        folder = self._store.location.folder
        if folder is not None:
            with suppress(OSError), open(f"{folder}/{key}", "rb", buffering=0) as file:
                return file.read()
        return self._store.read(key)  # which also says what is wrong

    def manifest(self, digest: str) -> Manifest:
        """The manifest with this digest; raises as `commit` does."""
        with self._lock:
            if digest in self._manifests:
                self._manifests.move_to_end(digest)
                return self._manifests[digest]
        return self._keep(Manifest.decode(digest, self.manifest_bytes(digest)))

    def manifest_bytes(self, digest: str) -> bytes:
        """The manifest with this digest as it is stored, neither checked nor decoded.

        Raises:
            MissingObjectError: there is none.
        """
        data = self._read(manifest_key(digest))
        if data is None:
            raise MissingObjectError(f"manifest {digest[:8]} is gone", hint=_HINT)
        return data

    def _keep(self, manifest: Manifest) -> Manifest:
        with self._lock:
            self._manifests[manifest.digest] = manifest
            if len(self._manifests) > MANIFESTS_KEPT:
                self._manifests.popitem(last=False)
        return manifest

    def manifest_of(self, commit: Commit) -> Manifest:
        """The manifest of a commit; raises as `commit` does, naming the commit."""
        return self.manifest(commit.manifest)

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Stores a manifest; gives it back with its digest."""
        digest, data = manifest.encode()
        self._store.write(manifest_key(digest), data)
        return self._keep(replace(manifest, digest=digest))

    def write_commit(self, commit: Commit) -> Commit:
        """Stores a commit; gives it back with its digest."""
        digest, data = commit.encode()
        self._store.write(commit_key(digest), data)
        return self._remember(commit, digest)

    def write(self, manifest: Manifest, describe: Callable[[Manifest], Commit]) -> Commit:
        """Stores a manifest and a commit of it, both at once; the commit with its digest.

        Args:
            manifest: the tree.
            describe: gives the commit of the manifest, whose digest is known by then.
        """
        manifest_digest, manifest_data = manifest.encode()
        named = replace(manifest, digest=manifest_digest)
        commit = describe(named)
        digest, data = commit.encode()
        self._store.write_many(
            [(manifest_key(manifest_digest), manifest_data), (commit_key(digest), data)]
        )
        self._keep(named)
        return self._remember(commit, digest)

    def secure(self, commit: Commit, manifest: Manifest) -> None:
        """Makes sure that a commit that was just written stays, whatever a collector planned.

        It may be that its manifest, of a run that died, had been there for long. In a
        folder this is done before a ref points to the commit: a collector that comes later
        sees that it is new. A bucket does not tell that of a key which is written anew with
        the same bytes, so there it is done when the ref points to it.
        """
        keys = [commit_key(commit.digest), manifest_key(commit.manifest)]
        collecting = Collecting(self._store)
        while collecting.wait_for(keys) or not all(map(self._store.exists, keys)):
            self._store.write_many([(keys[0], commit.encode()[1]), (keys[1], manifest.encode()[1])])

    def _remember(self, commit: Commit, digest: str) -> Commit:
        self._commits[digest] = replace(commit, digest=digest)
        return self._commits[digest]

    def find_prefix(self, prefix: str) -> list[str]:
        """Digests of all commits that begin with `prefix` (2 or more hex digits)."""
        return _digests(self._store.keys(f"commits/{prefix[:2]}/{prefix}"))

    def all_commits(self) -> list[str]:
        """Digests of all stored commits, reachable or not."""
        return _digests(self._store.keys("commits/"))

    def all_manifests(self) -> list[str]:
        """Digests of all stored manifests, referenced or not."""
        return _digests(self._store.keys("manifests/"))

    def forget(self) -> None:
        """Empties the caches, after objects were deleted."""
        self._commits.clear()
        self._manifests.clear()


def _digests(keys: Iterable[str]) -> list[str]:
    return [key.rpartition("/")[2].removesuffix(".msgpack") for key in keys if is_record(key)]
