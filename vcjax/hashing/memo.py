"""Digests of JAX arrays that were digested before and cannot have changed since."""

import weakref
from collections.abc import Callable

import jax
from jaxtyping import Shaped

from vcjax.hashing.digests import LeafDigest

_HOST_MEMORY = ("pinned_host", "unpinned_host")


def cannot_change(array: Shaped[jax.Array, "..."]) -> bool:
    """Whether no host code can write into the memory of an array.

    On CPU devices it never can be told: `jnp.asarray`, `jax.device_put` and
    `jnp.from_dlpack` may take over the memory of a NumPy array without a copy,
    donation passes such memory on to the results of computations, and an array
    does not know whose memory it is. (That code on an accelerator changes an
    array which JAX imported through DLPack is undefined behaviour in JAX itself.)
    """
    on_cpu = any(device.platform == "cpu" for device in array.devices())
    return not on_cpu and array.sharding.memory_kind not in _HOST_MEMORY


class DigestMemo:
    """Digests by array object, for as long as the object lives.

    Objects are held weakly. An entry goes when its object does, so that an id
    which Python uses again finds nothing.

    Args:
        eligible: whether an array may be remembered.
    """

    def __init__(self, eligible: Callable[[jax.Array], bool] = cannot_change):
        self._eligible = eligible
        self._entries: dict[int, tuple[weakref.ref[jax.Array], str, LeafDigest]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, dtype: str, data: object) -> LeafDigest | None:
        """The digest of an array under a dtype name, if it is remembered."""
        entry = self._entries.get(id(data))
        if entry is None:
            return None
        reference, name, digest = entry
        # The weak reference settles it: ids are used again before finalisers of cycles run.
        array = reference()
        if array is None or array is not data or name != dtype or array.is_deleted():
            return None
        return digest

    def put(self, dtype: str, data: object, digest: LeafDigest) -> None:
        """Remembers a digest, if the data are an eligible JAX array."""
        if not isinstance(data, jax.Array) or not self._eligible(data):
            return
        key, entries = id(data), self._entries

        def forget(reference: weakref.ref) -> None:
            if key in entries and entries[key][0] is reference:
                del entries[key]

        entries[key] = (weakref.ref(data, forget), dtype, digest)
