"""How far several models agree on what to change of their base: products of task vectors.

A task vector is model − base (Ilharco et al., "Editing Models with Task Arithmetic", ICLR
2023). Everything here follows from three matrices over the models: inner products of the task
vectors, of their signs, and of the masks of what they changed. They are sums over elements, so
leaves are streamed in runs of chunks; chunks that no model changed are not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, PyTree, Shaped

from vcjax.diffing.batch import batches, differing
from vcjax.diffing.contents import Content, Run, TreeContent, runs
from vcjax.diffing.digested import digested
from vcjax.diffing.examination import Side
from vcjax.diffing.matching import Identified
from vcjax.diffing.measurement import BATCH_BYTES, nbytes, workers
from vcjax.errors import TreeError
from vcjax.tree import flatten, is_inexact, leaf_dict, storage_dtype

TILE = 1024
"""Elements per product in float32; tiles are added up in float64."""

BLOCK = 1 << 18
"""Elements of every model that one call of the compiled pass takes."""

Matrix = Float64[np.ndarray, "models models"]


@dataclass
class Products:
    """The three matrices.

    Attributes:
        inner: inner products of the task vectors.
        signs: elements that two models changed in the same direction, less those
            that they changed in opposite ones.
        both: elements that two models changed; on the diagonal those that one did.
    """

    inner: Matrix
    signs: Matrix
    both: Matrix

    @classmethod
    def zero(cls, models: int) -> "Products":
        """Of nothing."""
        return cls(*(np.zeros((models, models)) for _ in range(3)))

    def add(self, other: "Products") -> None:
        """Adds the products of other elements."""
        self.inner += other.inner
        self.signs += other.signs
        self.both += other.both

    @property
    def norms(self) -> Float64[np.ndarray, " models"]:
        """Norms of the task vectors."""
        return np.sqrt(np.diag(self.inner))

    @property
    def cosine(self) -> Matrix:
        """Cosines of the angles between task vectors; 0 where one of them is zero."""
        norms = self.norms
        product = np.outer(norms, norms)
        cosine = np.divide(self.inner, product, out=np.zeros_like(product), where=product > 0)
        return np.clip(cosine, -1, 1)

    @property
    def sign_agreement(self) -> Matrix:
        """Of the elements that both changed, the fraction in one direction; 0 of none."""
        agree = (self.both + self.signs) / 2
        return np.divide(agree, self.both, out=np.zeros_like(agree), where=self.both > 0)

    @property
    def overlap(self) -> Matrix:
        """Of the elements that either changed, the fraction that both did; 0 of none."""
        changed = np.diag(self.both)
        either = changed[:, None] + changed[None, :] - self.both
        return np.divide(self.both, either, out=np.zeros_like(either), where=either > 0)


@dataclass(frozen=True)
class Similarity:
    """How alike the task vectors of several models are.

    Attributes:
        names: of the models.
        cosine: `[models][models]`, cosines of the angles between task vectors.
        sign_agreement: of the elements that two models changed, the fraction that
            they changed in one direction.
        overlap: of the elements that either changed, the fraction that both did.
        norms: of the task vectors.
        leaves: how many leaves were compared: floating point arrays that all
            models and the base have in one shape and dtype.
        skipped: paths of floating point arrays that are not so.
    """

    names: tuple[str, ...]
    cosine: tuple[tuple[float, ...], ...]
    sign_agreement: tuple[tuple[float, ...], ...]
    overlap: tuple[tuple[float, ...], ...]
    norms: tuple[float, ...]
    leaves: int
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "names": list(self.names),
            "cosine": [list(row) for row in self.cosine],
            "sign_agreement": [list(row) for row in self.sign_agreement],
            "overlap": [list(row) for row in self.overlap],
            "norms": list(self.norms),
            "leaves": self.leaves,
            "skipped": list(self.skipped),
        }


def similarity(
    models: Sequence[PyTree], base: PyTree, names: Sequence[str] | None = None
) -> Similarity:
    """How alike several models are in what they changed of their base.

    Args:
        models: trees.
        base: the tree that they come from.
        names: of the models; "0", "1", … by default.

    Raises:
        TreeError: no models, or as many names as models were not given.

    Example:
        >>> base = {"w": np.zeros(4)}
        >>> models = [{"w": np.float64([1, 1, 0, 0])}, {"w": np.float64([1, -1, 0, 0])}]
        >>> similarity(models, base).sign_agreement[0][1]
        0.5
    """
    trees = [flatten(tree) for tree in (*models, base)]
    sides = [(digested(tree), TreeContent(leaf_dict(tree))) for tree in trees]
    return similarity_of(sides[:-1], sides[-1], names)


def similarity_of(
    models: Sequence[Side],
    base: Side,
    names: Sequence[str] | None = None,
    limit: int = BATCH_BYTES,
) -> Similarity:
    """`similarity` of sides of which nothing is read but the chunks that a model changed.

    Args:
        models: (tree of digested leaves, contents) of each.
        base: of the base.
        names: of the models.
        limit: bytes of all sides that are prepared at once.
    """
    names = tuple(map(str, range(len(models)))) if names is None else tuple(names)
    if not models or len(names) != len(models):
        raise TreeError(
            f"{len(names)} names for {len(models)} models",
            hint="give at least one model, and one name for each",
        )
    origin = leaf_dict(base[0])
    leaves = [leaf_dict(root) for root, _ in models]
    paths, skipped = [], []
    for path in dict.fromkeys([*origin, *(path for side in leaves for path in side)]):
        there = [side.get(path) for side in (origin, *leaves)]
        specs = [leaf.spec for leaf in there if leaf is not None and not leaf.spec.is_value]
        if not any(is_inexact(spec.dtype) for spec in specs):
            continue
        whole = len(specs) == len(there) and len({str(spec) for spec in specs}) == 1
        (paths if whole else skipped).append(path)
    found = products(paths, models, base, limit)
    total = Products.zero(len(models))
    for part in found.values():
        total.add(part)
    return Similarity(
        names=names,
        cosine=_rows(total.cosine),
        sign_agreement=_rows(total.sign_agreement),
        overlap=_rows(total.overlap),
        norms=tuple(total.norms.tolist()),
        leaves=len(paths),
        skipped=tuple(skipped),
    )


def _rows(matrix: Matrix) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def products(
    paths: Sequence[str], models: Sequence[Side], base: Side, limit: int = BATCH_BYTES
) -> dict[str, Products]:
    """The products of task vectors by leaf.

    Args:
        paths: leaves that all sides have in one shape and dtype, of real or complex numbers.
        models: (tree of digested leaves, contents) of each.
        base: of the base.
        limit: bytes of all sides that are prepared at once.
    """
    origin, leaves = leaf_dict(base[0]), [leaf_dict(root) for root, _ in models]
    found = {path: Products.zero(len(models)) for path in paths}
    changed = {
        path: [side[path].digest != origin[path].digest for side in leaves] for path in paths
    }
    read = [path for path in paths if any(changed[path])]
    sizes = {path: nbytes(origin[path].spec) * (1 + sum(changed[path])) for path in read}
    with workers() as submit:
        for batch in batches(sizes, limit):
            base[1].prepare(batch)
            for at, (_, content) in enumerate(models):
                content.prepare([path for path in batch if changed[path][at]])
            started = []
            for path in batch:
                which = [
                    _chunks(origin[path], side[path], differs)
                    for side, differs in zip(leaves, changed[path], strict=True)
                ]
                wanted = None if None in which else sorted(set().union(*which))  # pyright: ignore[reportArgumentType]
                for run in runs(origin[path].spec, wanted):
                    there = [
                        content if chunks is None or _meets(run, chunks) else None
                        for (_, content), chunks in zip(models, which, strict=True)
                    ]
                    started.append((path, submit(_of_run, path, run, there, base[1])))
            for path, future in started:
                found[path].add(future.result())
    return found


def _chunks(old: Identified, new: Identified, differs: bool) -> set[int] | None:
    """The chunks of a leaf that a model changed; None if that is not known."""
    if not differs:
        return set()
    found = differing(old.chunks, new.chunks)
    return None if found is None else set(found)


def _meets(run: Run, chunks: set[int]) -> bool:
    return any(run.first <= chunk <= run.last for chunk in chunks)


def _of_run(path: str, run: Run, models: Sequence[Content | None], base: Content) -> Products:
    """The products of some chunks; a model that is None has not changed them."""
    origin = base.read(path, run.first, run.last)
    sides = [None if m is None else m.read(path, run.first, run.last) for m in models]
    total = Products.zero(len(models))
    width = BLOCK // max(1, len(models))
    for start in range(0, origin.size, width):
        part = slice(start, start + width)
        total.add(_of_block([None if s is None else s[part] for s in sides], origin[part]))
    return total


def _of_block(
    models: Sequence[Shaped[np.ndarray, " elements"] | None],
    base: Shaped[np.ndarray, " elements"],
) -> Products:
    reals = 2 if "complex" in base.dtype.name else 1
    width = -(-BLOCK // max(1, len(models)) // TILE) * TILE * reals
    vectors = np.zeros((len(models), width), np.float32)
    tops = np.ones(len(models))
    for at, side in enumerate(models):
        if side is not None:
            difference = _task_vector(side, base)
            # Divided by the largest, squares neither vanish nor overflow in float32.
            tops[at] = float(np.max(np.abs(difference), initial=0)) or 1.0
            vectors[at, : difference.size] = difference / tops[at]
    inner, signs, both = (
        np.sum(np.asarray(part, np.float64), axis=0)
        for part in jax.device_get(_tile_products(vectors))
    )
    return Products(inner * np.outer(tops, tops), signs, both)


def _task_vector(
    side: Shaped[np.ndarray, " elements"], base: Shaped[np.ndarray, " elements"]
) -> Float[np.ndarray, " reals"]:
    """model − base; complex numbers as pairs. 0 where one of them is not finite."""
    wide = np.complex128 if "complex" in base.dtype.name else np.float64
    if storage_dtype(base.dtype.name).itemsize <= 4 and wide is np.float64:
        wide = np.float32
    with np.errstate(invalid="ignore", over="ignore"):
        difference = side.astype(wide) - base.astype(wide)
    difference = difference.view(np.float64) if wide is np.complex128 else difference
    if not np.isfinite(difference).all():
        difference = np.where(np.isfinite(difference), difference, 0)
    return difference


_TileMatrices = Float32[jax.Array, "tiles models models"]


@jax.jit
def _tile_products(
    vectors: Float32[jax.Array, "models elements"],
) -> tuple[_TileMatrices, _TileMatrices, _TileMatrices]:
    """Per tile, the inner products of rows, of their signs and of where they are not 0."""
    tiles = vectors.reshape(vectors.shape[0], -1, TILE)

    def product(rows: Float32[jax.Array, "models tiles elements"]) -> _TileMatrices:
        return jnp.einsum("nrt,mrt->rnm", rows, rows, precision=jax.lax.Precision.HIGHEST)

    moved = (tiles != 0).astype(jnp.float32)
    return product(tiles), product(jnp.sign(tiles)), product(moved)


def agreement(found: Products) -> Mapping[str, Any]:
    """What two task vectors have in common, from their products.

    Returns:
        cosine: of the angle between them.
        sign_agreement: of the elements that both changed, the fraction in one direction.
        overlap: of the elements that either changed, the fraction that both did.
        norm_ours, norm_theirs: their norms.
        ours_changed, theirs_changed, both_changed: numbers of elements.
    """
    return {
        "cosine": float(found.cosine[0, 1]),
        "sign_agreement": float(found.sign_agreement[0, 1]),
        "overlap": float(found.overlap[0, 1]),
        "norm_ours": float(found.norms[0]),
        "norm_theirs": float(found.norms[1]),
        "ours_changed": int(found.both[0, 0]),
        "theirs_changed": int(found.both[1, 1]),
        "both_changed": int(found.both[0, 1]),
    }
