"""Singular values of a difference, by a randomised decomposition that streams."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Float64, Shaped

from vcjax.diffing.contents import Content, flat
from vcjax.diffing.measurement import Pair
from vcjax.diffing.storage_suggestion import RANKS, suggestion
from vcjax.tree import storage_dtype

RANK = 32
"""Singular values that are found."""

SKETCH = RANK + 16
"""Columns of the random sketch (Halko et al. advise 5 to 10 more than the rank)."""

POWERS = 2
"""Power iterations: two bring the 32nd value of a slowly falling spectrum to within 1 %."""

SLAB = 1 << 22
"""Elements of the matrix that are on the device at once."""

BINS = 40
"""Bins of the histogram of a difference, from −max_abs to max_abs."""


def spectrum(
    pair: Pair, figures: dict[str, Any], old: Content, new: Content, seed: int = 0
) -> dict[str, Any]:
    """The figures of a difference that need its singular values, and its histogram.

    The leaf is taken as a matrix, its last axis as the columns; real leaves of at
    least two rows and columns have a spectrum, complex ones and vectors do not.
    A randomised decomposition (Halko, Martinsson & Tropp 2011, algorithms 4.4 and
    5.1) finds the `RANK` largest singular values: four passes over the rows, in
    slabs, jitted; the sketch is seeded, so equal leaves give equal figures.

    Args:
        pair: the two contents.
        figures: of the pair, from `measure`.
        old: where the old side is read from.
        new: where the new one is.
        seed: of the sketch.

    Returns:
        singular_values: of new − old, the `RANK` largest, falling.
        spectral_norm: the largest.
        energy: fraction of the squares that rank 1, 2, 4, 8, 16, 32 capture; the
            ranks that the matrix has.
        effective_rank: l2² / spectral_norm², the stable rank (Rudelson & Vershynin
            2007): at most the rank, and not moved by what is near zero.
        histogram: {edges, counts} of the differences of elements that changed.
        update, update_bytes, update_rank: see `suggestion`, with low rank among the
            candidates.

        What a leaf does not have is left out.
    """
    found: dict[str, Any] = {"histogram": histogram(pair, figures["max_abs"], old, new)}
    rows, columns = figures["rows"], figures["columns"]
    dtype = storage_dtype(pair.spec.dtype)
    if rows < 2 or columns < 2 or "complex" in dtype.name or not 0 < figures["l2"] < np.inf:
        return found
    values = singular_values(pair, (rows, columns), figures["max_abs"], old, new, seed)
    squares = np.cumsum(values**2) / figures["l2"] ** 2
    found["singular_values"] = values.tolist()
    found["spectral_norm"] = float(values[0])
    found["effective_rank"] = float((figures["l2"] / values[0]) ** 2) if values[0] else 0.0
    ranks = [rank for rank in RANKS if rank <= len(values)]
    found["energy"] = [min(1.0, float(squares[rank - 1])) for rank in ranks]
    return found | suggestion(dtype.itemsize, figures | found)


def histogram(pair: Pair, largest: float, old: Content, new: Content) -> dict[str, Any]:
    """How many of the elements that changed did so by how much."""
    edges = np.linspace(-largest, largest, BINS + 1)
    counts = np.zeros(BINS, np.int64)
    if largest > 0 and np.isfinite(largest):
        for difference in _differences(pair, old, new):
            moved = difference[difference != 0]
            counts += np.histogram(moved, edges)[0]
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _differences(
    pair: Pair, old: Content, new: Content
) -> Iterator[Float64[np.ndarray, " elements"]]:
    """new − old in C order; 0 where one of them is not finite."""
    old.prepare([pair.old_path])
    new.prepare([pair.path])
    streams = flat(old, pair.old_path, pair.spec), flat(new, pair.path, pair.spec)
    for (_, before), (_, after) in zip(*streams, strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            difference = _real(after) - _real(before)
        difference[~np.isfinite(difference)] = 0
        yield difference


def _real(array: Shaped[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    if "complex" in array.dtype.name:
        return np.abs(array.astype(np.complex128))
    return array.astype(np.float64)


def singular_values(
    pair: Pair, shape: tuple[int, int], largest: float, old: Content, new: Content, seed: int = 0
) -> Float64[np.ndarray, " values"]:
    """The largest singular values of new − old, at most `RANK`; see `spectrum`.

    Args:
        pair: the two contents.
        shape: (rows, columns) that they are taken to have.
        largest: the largest magnitude in the difference, by which it is divided.
        old: where the old side is read from.
        new: where the new one is.
        seed: of the sketch.
    """
    rows, columns = shape
    if min(shape) <= SKETCH and rows * columns <= SLAB:
        whole = np.concatenate(list(_differences(pair, old, new))).reshape(shape)
        return np.linalg.svd(whole / largest, compute_uv=False)[:RANK] * largest
    width = _bucket(columns)

    def slabs() -> Iterator[tuple[slice, Float32[jax.Array, "rows width"]]]:
        return _slabs(_differences(pair, old, new), columns, width, largest)

    count = min(SKETCH, rows, columns)
    sketch = jax.random.normal(jax.random.key(seed), (width, SKETCH), jnp.float32)
    basis = np.asarray(sketch.at[columns:].set(0))[:, :count]
    # (AᵀA)^q Aᵀ… is applied to the narrow side: the right factor, [columns, count].
    for _ in range(POWERS):
        basis = _through(slabs(), basis, width)
        basis = np.linalg.qr(basis.astype(np.float64))[0].astype(np.float32)
    # A V = U S W: its singular values are those of A in the space that V spans.
    gram = np.zeros((basis.shape[1], basis.shape[1]))
    for _, slab in slabs():
        image = np.asarray(_product(slab, basis), np.float64)
        gram += image.T @ image
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)) * largest
    return values[: min(RANK, rows, columns)]


def _through(
    slabs: Iterator[tuple[slice, Float32[jax.Array, "rows width"]]],
    basis: Float32[np.ndarray, "width count"],
    width: int,
) -> Float64[np.ndarray, "width count"]:
    """AᵀA times a basis, A given in slabs of rows."""
    total = np.zeros((width, basis.shape[1]))
    for _, slab in slabs:
        total += np.asarray(_normal_product(slab, basis), np.float64)
    return total / max(1e-300, np.max(np.abs(total)))


def _bucket(length: int) -> int:
    """The next of few widths: columns of zeros change no singular value, shapes are compiled."""
    power = 1 << max(3, (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 else power


def _slabs(
    parts: Iterator[Float64[np.ndarray, " elements"]], columns: int, width: int, largest: float
) -> Iterator[tuple[slice, Float32[jax.Array, "rows width"]]]:
    """Rows of a matrix, from parts of it in C order, in arrays of one fixed size."""
    rows = max(1, SLAB // width)
    held, start = np.empty(0), 0
    slab = np.zeros((rows, width), np.float32)
    filled = 0
    for part in parts:
        held = np.concatenate([held, part]) if held.size else part
        while held.size >= columns:
            take = min(held.size // columns, rows - filled)
            block = held[: take * columns].reshape(take, columns)
            slab[filled : filled + take, :columns] = block / largest
            held, filled = held[take * columns :], filled + take
            if filled == rows:
                yield slice(start, start + filled), jnp.asarray(slab.copy())
                start, filled = start + filled, 0
    if filled:
        slab[filled:] = 0
        yield slice(start, start + filled), jnp.asarray(slab.copy())


@jax.jit
def _product(
    slab: Float32[jax.Array, "rows width"], basis: Float32[jax.Array, "width count"]
) -> Float32[jax.Array, "rows count"]:
    return jnp.matmul(slab, basis, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _normal_product(
    slab: Float32[jax.Array, "rows width"], basis: Float32[jax.Array, "width count"]
) -> Float32[jax.Array, "width count"]:
    image = jnp.matmul(slab, basis, precision=jax.lax.Precision.HIGHEST)
    return jnp.matmul(slab.T, image, precision=jax.lax.Precision.HIGHEST)
