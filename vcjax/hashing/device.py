"""Digests of arrays where they live: chunks are copied into tiles, and tiles hashed.

There is one dispatch chain without a round trip: place regions of leaves into
tiles, hash the tiles, pick their digests, next tiles. The host waits only at
the end, for 32 bytes a chunk. `blake3.hash_tile` is compiled for either of
`schedule.TILE_LANES`.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32, Shaped, UInt32

from vcjax.hashing import blake3
from vcjax.hashing.digests import LeafDigest
from vcjax.hashing.host import joined_digest
from vcjax.hashing.schedule import Content, Device, Task, message_tables, rounds, tasks_of
from vcjax.hashing.tiles import fill

TREE_LEVELS = 13
"""Levels of the tree of the longest chunk: chunks are below 8 MiB, 8,192 lanes."""

_TEAM = "team"


def digest_on_devices(leaves: Iterable[tuple[str, Shaped[Array, "..."]]]) -> list[LeafDigest]:
    """The digests of JAX arrays, computed on the devices that hold them.

    Args:
        leaves: (dtype name, array) per leaf; PRNG keys as their words. All
            shards, or a replica of each, must be addressable.
    """
    leaves = list(leaves)
    found: list[dict[int, bytes]] = [{} for _ in leaves]
    # Without x64, JAX would cut 64-bit arrays that were made with it in half.
    with jax.enable_x64(True):
        results = [result for team in _teams(tasks_of(leaves)) for result in _chain(team)]
    for contents, digests in results:
        for content, rows in zip(contents, np.asarray(digests), strict=True):
            _collect(content, rows, found)
    return [
        joined_digest(dtype, array.shape, [chunks[number] for number in range(len(chunks))])
        for (dtype, array), chunks in zip(leaves, found, strict=True)
    ]


def _teams(work: dict[Device, list[Task]]) -> list[dict[Device, list[Task]]]:
    """Work in parts whose devices can run one program together: those of one platform."""
    teams: dict[str, dict[Device, list[Task]]] = defaultdict(dict)
    for device in sorted(work, key=lambda device: (device.platform, device.id)):
        teams[device.platform][device] = work[device]
    return list(teams.values())


def _chain(
    work: dict[Device, list[Task]],
) -> list[tuple[list[Content], UInt32[Array, "devices messages 8"]]]:
    """Dispatches the work of some devices: in every round, each fills a tile, and all hash theirs.

    One program for all of them, since XLA would compile the kernel anew for each.

    Returns:
        For every round what was in the tile of each device, and the digests, still on
        the devices.
    """
    devices = tuple(work)
    hash_tiles, pick = _programs(devices)
    tiles: dict[tuple[Device, int], Array] = {}
    results = []
    for lanes, contents in rounds(list(work.values())):
        slots = lanes // blake3.SLOT_LANES
        filled = []
        for device, content in zip(devices, contents, strict=True):
            with jax.default_device(device):
                tile = tiles.pop((device, lanes), None)
                if tile is None:
                    zeros = jnp.zeros((16, 16, blake3.SLOT_LANES, slots), jnp.uint32)
                    tile = jax.device_put(zeros, device)
                tile = fill(tile, content, device)
            filled.append(tile)
            tiles[device, lanes] = tile
        sharding = NamedSharding(Mesh(devices, _TEAM), PartitionSpec(_TEAM))
        shape = (16 * len(devices), *filled[0].shape[1:])
        together = jax.make_array_from_single_device_arrays(shape, sharding, filled)
        table, first = message_tables(slots, contents)
        levels = min(TREE_LEVELS, (lanes - 1).bit_length())
        digests = pick(hash_tiles(together, table, levels=levels), first)
        digests.copy_to_host_async()
        results.append((contents, digests))
    return results


def _collect(
    content: Content, digests: UInt32[np.ndarray, "messages 8"], found: list[dict[int, bytes]]
) -> None:
    rows = iter(digests.astype("<u4", copy=False))
    for task, _ in content:
        for chunk in range(task.region.chunks):
            found[task.leaf][task.region.first + chunk] = next(rows).tobytes()


@functools.cache
def _programs(devices: tuple[Device, ...]) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The kernel for tiles on these devices, and what picks digests from its result."""
    mesh, spec = Mesh(devices, _TEAM), PartitionSpec(_TEAM)
    unrolled = devices[0].platform != "cpu"
    together = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False
    )

    @functools.partial(jax.jit, static_argnames="levels")
    def hash_tiles(
        tiles: UInt32[Array, "blocks 16 16 slots"],
        tables: UInt32[Array, "tables slots"],
        *,
        levels: int,
    ) -> UInt32[Array, "words slots"]:
        kernel = functools.partial(blake3.hash_tile, levels=levels, unrolled=unrolled)
        return together(kernel)(tiles, tables)

    @jax.jit
    @together
    def pick(
        digests: UInt32[Array, "8 slots"], first: Int32[Array, "1 messages"]
    ) -> UInt32[Array, "1 messages 8"]:
        return digests[:, first[0]].T[None]

    return hash_tiles, pick
