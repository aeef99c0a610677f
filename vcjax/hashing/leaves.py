"""Digests of leaves and trees, each computed where its data are."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Literal

import jax
from jaxtyping import PyTree

from vcjax import tree
from vcjax.hashing.device import digest_on_devices
from vcjax.hashing.digests import LeafDigest, value_digest
from vcjax.hashing.host import digest_arrays
from vcjax.hashing.memo import DigestMemo
from vcjax.hashing.schedule import Device
from vcjax.hashing.speed import faster_backend

Backend = Literal["device", "host"]


def digest_leaves(
    leaves: Mapping[str, tree.Leaf],
    *,
    backend: Backend | None = None,
    memo: DigestMemo | None = None,
) -> dict[str, LeafDigest]:
    """The digests of leaves, by leaf path, in the order of `leaves`; see `iter_digests`."""
    found = dict(iter_digests(leaves, backend=backend, memo=memo))
    return {path: found[path] for path in leaves}


def iter_digests(
    leaves: Mapping[str, tree.Leaf],
    *,
    backend: Backend | None = None,
    memo: DigestMemo | None = None,
) -> Iterator[tuple[str, LeafDigest]]:
    """The digests of leaves, one by one: those that are known or on an accelerator first.

    Of arrays on accelerators only the digests are transferred, all at once. Those
    on the host are digested ahead of the consumer, by all cores.

    Args:
        leaves: by leaf path.
        backend: "device": of all JAX arrays by the JAX kernel on the devices
            that hold them; "host": of all leaves by the SIMD package. By default
            what is faster (`speed_report`). NumPy arrays are always digested on
            the host.
        memo: remembers digests of arrays that cannot have changed.

    Yields:
        Leaf path and digest. A plain value has no chunks.

    Raises:
        UnsupportedLeafError: an array has shards that this process cannot address.
    """
    on_device: dict[str, tree.Leaf] = {}
    on_host: dict[str, tree.Leaf] = {}
    for path, leaf in leaves.items():
        known = memo.get(leaf.spec.dtype, leaf.data) if memo is not None else None
        if known is not None:
            yield path, known
        elif leaf.spec.is_value:
            yield path, LeafDigest(value_digest(leaf.spec.dtype, leaf.data), ())
        elif _backend(path, leaf, backend) == "device":
            on_device[path] = leaf
        else:
            on_host[path] = leaf
    found: list[Iterable[tuple[str, LeafDigest]]] = []
    if on_device:
        arrays = [(leaf.spec.dtype, leaf.data) for leaf in on_device.values()]
        found.append(zip(on_device, digest_on_devices(arrays), strict=True))
    if on_host:
        hosted = ((leaf.spec.dtype, tree.canonical(leaf)) for leaf in on_host.values())
        found.append(zip(on_host, digest_arrays(hosted), strict=True))
    for path, digest in chain.from_iterable(found):
        if memo is not None:
            memo.put(leaves[path].spec.dtype, leaves[path].data, digest)
        yield path, digest


def _backend(path: str, leaf: tree.Leaf, backend: Backend | None) -> Backend:
    if not isinstance(leaf.data, jax.Array):
        return "host"
    tree.refuse_spanning(leaf, path)
    if backend is not None:
        return backend
    return faster_on(min(leaf.data.devices(), key=lambda device: device.id))


def faster_on(device: Device) -> Backend:
    """The backend for arrays on a device.

    CPU devices: the host, unmeasured. The SIMD package reads the same memory without a
    copy and was 10 to 15 times faster than the JAX kernel wherever it was measured.
    """
    return "host" if device.platform == "cpu" else faster_backend(device)


def tree_digests(tree_: PyTree, *, backend: Backend | None = None) -> dict[str, str]:
    """The leaf digests of a PyTree by leaf path, as 64 hexadecimal digits.

    They do not depend on device, backend or sharding.

    Args:
        tree_: any PyTree whose leaves vcjax can store.
        backend: see `digest_leaves`.

    Raises:
        TreeError: two leaves have the same path, or one cannot be stored.

    Example:
        >>> tree_digests({"w": jnp.zeros(3)})["w"][:16]
        '5338da9cd8d2f175'
    """
    leaves = tree.leaf_dict(tree.flatten(tree_))
    digests = digest_leaves(leaves, backend=backend)
    return {path: digest.leaf.hex() for path, digest in digests.items()}
