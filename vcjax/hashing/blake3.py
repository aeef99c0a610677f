"""BLAKE3-256 in JAX: uint32 vector code, bit-identical to the reference.

Aumasson, Neves, O'Connor, Wilcox-O'Hearn: "BLAKE3: one function, fast
everywhere" (2020), section 2. Unkeyed mode with 32 bytes of output.

A message is cut into *lanes* of 1,024 bytes (the paper's chunks; here a chunk
is one of the chunk grid). The lanes of many messages are hashed side by side:
a `Tile` of T = 16 S lanes is an array by block, word, lane within its slot and
slot, whose last axis is contiguous, so that neighbouring threads load neighbouring
words. Each message begins at one of the S *slots* of 16 lanes; its lanes run
down the slot first (axis 2), then on to the next slot (axis 3).

1. Sixteen steps, one for each block of 64 bytes: all T lanes compress a block.
2. Fifteen steps of S parent compressions build the tree within every slot.
3. One more step for each further level joins the nodes of neighbouring slots.

A node is kept at the place of its leftmost lane, and joined with the node
`half` lanes further if the message reaches so far; otherwise it moves up as
it is. That is BLAKE3's tree, whose left subtrees are the largest powers of two.
"""

import functools
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int32, Integer, UInt8, UInt32

LANE_BYTES = 1024
"""Bytes that one lane of a tile hashes: a chunk, in the words of the BLAKE3 paper."""

SLOT_LANES = 16
"""Messages begin at multiples of this many lanes. 16 leaves a tree step enough threads."""

CHUNK_START, CHUNK_END, PARENT, ROOT = (np.uint32(1 << bit) for bit in range(4))

_IV = (
    *(0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A),
    *(0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19),
)

_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)

_ROUNDS = 7

_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))

Words = UInt32[Array, " lanes"]
"""One word of each lane."""

Vectors = tuple[Words, ...]
"""The words of a value, each for n lanes."""

Tile = UInt32[Array, "16 16 16 slots"]
"""Lanes side by side: block, word, lane within its slot, slot."""

Compress = Callable[[Vectors, Vectors, Words, Words, Words], Vectors]


def _rotate(x: UInt32[Array, "..."], bits: int) -> UInt32[Array, "..."]:
    return (x >> np.uint32(bits)) | (x << np.uint32(32 - bits))


def _mix(
    a: UInt32[Array, "*rows lanes"],
    b: UInt32[Array, "*rows lanes"],
    c: UInt32[Array, "*rows lanes"],
    d: UInt32[Array, "*rows lanes"],
    x: UInt32[Array, "*rows lanes"],
    y: UInt32[Array, "*rows lanes"],
) -> tuple[UInt32[Array, "*rows lanes"], ...]:
    """The function G of the paper (section 2.2)."""
    a = a + b + x
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b + y
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


@jax.jit  # traced once for seven rounds
def _round(state: list[Words], message: list[Words]) -> list[Words]:
    for step, places in enumerate(_COLUMNS + _DIAGONALS):
        a, b, c, d = (state[i] for i in places)
        mixed = _mix(a, b, c, d, message[2 * step], message[2 * step + 1])
        for i, word in zip(places, mixed, strict=True):
            state[i] = word
    return state


def compress_unrolled(
    chaining: Vectors, message: Vectors, counter: Words, length: Words, flags: Words
) -> Vectors:
    """The compression function, as 1,200 elementwise operations on vectors of n lanes.

    All sixteen words of a lane's state fit into the registers of one thread, and
    XLA makes one kernel of it, so this is the form for GPUs. (Given and returned
    as arrays `[8, n]`, it became two kernels that pass the state through memory.)
    For CPUs XLA takes long to compile it: 7 s.

    Args:
        chaining: chaining values, 8 words.
        message: blocks of 64 bytes, 16 little-endian words.
        counter: number of the lane in its message; 0 for parents. (The upper
            word of the counter is 0: messages are shorter than 4 TiB.)
        length: bytes in the block, 0 to 64.
        flags: of `CHUNK_START`, `CHUNK_END`, `PARENT`, `ROOT`.

    Returns:
        New chaining values, 8 words.
    """
    fixed = [jnp.full_like(counter, np.uint32(word)) for word in _IV[:4]]
    state = [*chaining, *fixed, counter, jnp.zeros_like(counter), length, flags]
    words = list(message)
    for _ in range(_ROUNDS):
        state = _round(state, words)
        words = [words[i] for i in _PERMUTATION]
    return tuple(state[i] ^ state[i + 8] for i in range(8))


def compress_rolled(
    chaining: Vectors, message: Vectors, counter: Words, length: Words, flags: Words
) -> Vectors:
    """The same function as a loop of seven rounds over arrays of four rows.

    A fiftieth of the operations of `compress_unrolled`, so that it compiles
    fast; intermediate states go through memory. The form for CPUs.
    """
    above, below = jnp.stack(chaining[:4]), jnp.stack(chaining[4:])
    fixed = jnp.broadcast_to(np.asarray(_IV[:4], np.uint32)[:, None], above.shape)
    last = jnp.stack([counter, jnp.zeros_like(counter), length, flags])
    permutation = np.asarray(_PERMUTATION)

    def one_round(
        _: Integer[Array, ""], carry: tuple[UInt32[Array, "_ lanes"], ...]
    ) -> tuple[UInt32[Array, "_ lanes"], ...]:
        a, b, c, d, m = carry
        a, b, c, d = _mix(a, b, c, d, m[0:8:2], m[1:8:2])
        b, c, d = (jnp.roll(x, -by, axis=0) for x, by in ((b, 1), (c, 2), (d, 3)))
        a, b, c, d = _mix(a, b, c, d, m[8:16:2], m[9:16:2])
        b, c, d = (jnp.roll(x, by, axis=0) for x, by in ((b, 1), (c, 2), (d, 3)))
        return a, b, c, d, m[permutation]

    state = (above, below, fixed, last, jnp.stack(message))
    a, b, c, d, _ = lax.fori_loop(0, _ROUNDS, one_round, state)
    return (*(a ^ c), *(b ^ d))


def _initial(like: Words) -> Vectors:
    return tuple(jnp.full_like(like, np.uint32(word)) for word in _IV)


def _hash_lanes(
    compress: Compress,
    tile: Tile,
    position: UInt32[Array, " slots"],
    count: UInt32[Array, " slots"],
    last: UInt32[Array, " slots"],
) -> Vectors:
    """The chaining value of every lane, 8 words."""
    row = lax.broadcasted_iota(jnp.uint32, (SLOT_LANES, position.shape[0]), 0)
    lane = (row + np.uint32(SLOT_LANES) * position).reshape(-1)
    count = jnp.tile(count, SLOT_LANES)
    size = jnp.where(lane + np.uint32(1) < count, np.uint32(LANE_BYTES), jnp.tile(last, SLOT_LANES))
    final = jnp.maximum((size + np.uint32(63)) >> np.uint32(6), np.uint32(1)) - np.uint32(1)
    end = jnp.where(count == 1, CHUNK_END | ROOT, CHUNK_END)
    blocks = tile.reshape(16, 16, -1)

    def one_block(index: Integer[Array, ""], chaining: Vectors) -> Vectors:
        block = jnp.asarray(index, jnp.uint32)
        message = lax.dynamic_index_in_dim(blocks, index, keepdims=False)
        begin = np.uint32(64) * block
        length = jnp.clip(size, begin, begin + np.uint32(64)) - begin
        flags = jnp.where(block == final, end, np.uint32(0))
        flags = jnp.where(block == 0, flags | CHUNK_START, flags)
        words = tuple(message[i] for i in range(16))
        new = compress(chaining, words, lane, length, flags)
        return tuple(jnp.where(block <= final, *pair) for pair in zip(new, chaining, strict=True))

    return lax.fori_loop(0, 16, one_block, _initial(lane))


def _tree_steps(slots: int, levels: int) -> Int32[np.ndarray, "steps 3"]:
    """The steps that join nodes: (first lane, first lane of the partners, half) of each."""
    steps = []
    for level in range(levels):
        half = 1 << level
        if half < SLOT_LANES:
            rows = range(0, SLOT_LANES, 2 * half)
            steps += [(row * slots, (row + half) * slots, half) for row in rows]
        else:
            steps.append((0, half // SLOT_LANES, half))
    return np.asarray(steps, np.int32).reshape(-1, 3)


def _join_lanes(
    compress: Compress,
    nodes: Vectors,
    position: UInt32[Array, " slots"],
    count: UInt32[Array, " slots"],
    levels: int,
) -> UInt32[Array, "8 slots"]:
    """The root of every message, in the column of its first slot."""
    slots = position.shape[0]
    zero = jnp.zeros_like(position)
    length = jnp.full_like(position, np.uint32(64))

    def one_step(
        nodes: UInt32[Array, "8 lanes"], step: Int32[Array, "3"]
    ) -> tuple[UInt32[Array, "8 lanes"], None]:
        first, partner, half = step[0], step[1], step[2].astype(jnp.uint32)
        left = lax.dynamic_slice_in_dim(nodes, first, slots, axis=1)
        right = lax.dynamic_slice_in_dim(nodes, partner, slots, axis=1)
        lane = position * np.uint32(SLOT_LANES) + (first // slots).astype(jnp.uint32)
        both = np.uint32(2) * half
        flags = jnp.where((lane == 0) & (count <= both), PARENT | ROOT, PARENT)
        parent = compress(_initial(zero), (*left, *right), zero, length, flags)
        # Else XLA repeats the compression for each of the eight words (80 s to compile for a GPU).
        parent = jnp.stack(lax.optimization_barrier(parent))
        joined = jnp.where((lane % both == 0) & (lane + half < count), parent, left)
        return lax.dynamic_update_slice_in_dim(nodes, joined, first, axis=1), None

    joined, _ = lax.scan(one_step, jnp.stack(nodes), jnp.asarray(_tree_steps(slots, levels)))
    return joined[:, :slots]


def hash_tile(
    tile: Tile,
    messages: UInt32[Array, "3 slots"],
    *,
    levels: int,
    unrolled: bool,
) -> UInt32[Array, "8 slots"]:
    """The digests of all messages in a tile.

    Args:
        tile: the messages' words; zeros after the end of a message.
        messages: for each slot its number within its message, the number of
            lanes of the message, and the bytes in the message's last lane. The
            numbers of unused slots are arbitrary.
        levels: of the tree of the longest message: ⌈log₂ lanes⌉, or more.
        unrolled: which form of the compression function (see above).

    Returns:
        The digests. A message's stands in the column of its first slot.
    """
    compress = compress_unrolled if unrolled else compress_rolled
    position, count, last = messages
    nodes = _hash_lanes(compress, tile, position, count, last)
    return _join_lanes(compress, nodes, position, count, levels)


def lanes_of(nbytes: int) -> int:
    """How many lanes a message of `nbytes` bytes takes; an empty one takes one."""
    return max(1, -(-nbytes // LANE_BYTES))


def to_tile(words: UInt32[Array, "lanes 256"]) -> Tile:
    """Lanes in the order of their message, as a tile; their number is a multiple of 16."""
    return words.reshape(-1, SLOT_LANES, 16, 16).transpose(2, 3, 1, 0)


def from_bytes(x: UInt8[Array, " bytes"]) -> UInt32[Array, " words"]:
    """Little-endian words of bytes, whose number is a multiple of 4."""
    return lax.bitcast_convert_type(x.reshape(-1, 4), jnp.uint32)


def to_bytes(words: UInt32[Array, " words"]) -> UInt8[Array, " bytes"]:
    """The bytes of little-endian words."""
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)


def bucket(lanes: int) -> int:
    """The number of lanes that a message is padded to: few, so that few programs are compiled."""
    size = SLOT_LANES
    while size < lanes:
        size *= 8
    return size


def _message_table(
    slots: int, lanes: UInt32[Array, ""], last: UInt32[Array, ""]
) -> UInt32[Array, "3 slots"]:
    position = lax.iota(jnp.uint32, slots)
    return jnp.stack([position, jnp.full_like(position, lanes), jnp.full_like(position, last)])


@functools.partial(jax.jit, static_argnames="unrolled")
def _digest_padded(
    data: UInt8[Array, " bytes"],
    lanes: UInt32[Array, ""],
    last: UInt32[Array, ""],
    *,
    unrolled: bool | None,
) -> UInt8[Array, "32"]:
    tile = to_tile(from_bytes(data).reshape(-1, 256))
    slots = tile.shape[-1]
    levels = (SLOT_LANES * slots - 1).bit_length()
    table = _message_table(slots, lanes, last)
    if unrolled is None:
        digests = lax.platform_dependent(
            tile,
            table,
            cpu=functools.partial(hash_tile, levels=levels, unrolled=False),
            default=functools.partial(hash_tile, levels=levels, unrolled=True),
        )
    else:
        digests = hash_tile(tile, table, levels=levels, unrolled=unrolled)
    return to_bytes(digests[:, 0])


def blake3_device(x: UInt8[Array, " bytes"]) -> UInt8[Array, "32"]:
    """BLAKE3-256 of some bytes, computed where they are. Can be called under `jax.jit`.

    Args:
        x: less than 4 GiB.

    Example:
        >>> bytes(blake3_device(jnp.zeros(0, jnp.uint8))).hex()[:16]
        'af1349b9f5f9a1a6'
    """
    nbytes = x.shape[0]
    lanes = lanes_of(nbytes)
    padded = jnp.pad(x, (0, LANE_BYTES * bucket(lanes) - nbytes))
    last = nbytes - LANE_BYTES * (lanes - 1)
    # Outside of jit the platform is known; inside, lowering will know it.
    unrolled = None if isinstance(x, jax.core.Tracer) else is_unrolled(x)
    return _digest_padded(padded, np.uint32(lanes), np.uint32(last), unrolled=unrolled)


def is_unrolled(x: Array) -> bool:
    """Whether the devices of an array run the unrolled form faster."""
    return next(iter(x.devices())).platform != "cpu"
