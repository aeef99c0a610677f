"""What the executor does: one job per merged leaf, and how a job is cut into slices."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vcjax import tree
from vcjax.merging.inputs import NO_JAX_ARRAYS
from vcjax.merging.method import MergeMethod
from vcjax.streaming.slice_run import SlicePlan, plan_slices

SLICES = (1 << 18, 1 << 19, 1 << 20)
"""Elements of a slice, of which the plan takes what pads the leaves least.

245 M bfloat16 on two CPU cores are fastest in slices of 2^20; longer ones fall out of the cache.
"""

SLICED_ELEMENTS = 1 << 22
"""So many elements the slices of all models have together at most, where the shortest slices
allow it, so that memory hardly grows with their number. TIES of 2, 4 and 8 models of 491 MB took
190, 222 and 180 MB; with slices of one length 244 MB for 8.
"""

SLICE_COST = 1 << 15
"""What a slice costs besides its elements, in elements: 0.1 ms to start the programs."""

SMALL = 1 << 13
"""Leaves up to so many elements are a slice of this length: biases and scales."""


@dataclass(frozen=True, eq=False)
class Job:
    """One leaf to be made.

    Attributes:
        path: of the merged leaf.
        spec: of the merged leaf.
        inputs: the leaf of each model; their data may be lazy.
        base: the leaf of the base model, or None.
        method: without rules.
        weights: one per model.
        statistics: of each model, for methods that need them.
    """

    path: str
    spec: tree.LeafSpec
    inputs: tuple[tree.Leaf, ...]
    base: tree.Leaf | None
    method: MergeMethod
    weights: tuple[float, ...]
    statistics: tuple[Any, ...] | None = None

    @property
    def leaves(self) -> tuple[tree.Leaf, ...]:
        """All that are read: the models' and the base's."""
        return self.inputs if self.base is None else (*self.inputs, self.base)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.spec.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is read, once."""
        return sum(leaf_bytes(leaf) for leaf in self.leaves)

    @cached_property
    def is_merged(self) -> bool:
        """Whether it is of numbers that have a mean; else the first model's is taken."""
        return self.inputs[0].spec.has_mean

    @cached_property
    def rounds(self) -> int:
        """How often its method looks at all leaves of the models before it merges one."""
        return sum(len(step.rounds) for step in self.method.transforms) if self.is_merged else 0

    @cached_property
    def compute_dtype(self) -> np.dtype:
        """float32, or what is wider among the inputs."""
        names = [leaf.spec.dtype for leaf in self.leaves]
        is_complex = any(name.startswith("complex") for name in names)
        is_wide = any(name in ("float64", "complex128") for name in names)
        return np.dtype(
            {
                (False, False): "float32",
                (False, True): "float64",
                (True, False): "complex64",
                (True, True): "complex128",
            }[is_complex, is_wide]
        )

    @cached_property
    def slices(self) -> SlicePlan | None:
        """How the method works on slices of it; None where it must see the leaf."""
        if not self.is_merged or not self.size or self.statistics:
            return None
        return plan_slices(self.method, self.compute_dtype, len(self.spec.shape))


def leaf_bytes(leaf: tree.Leaf) -> int:
    """Size of a leaf's content in memory, bytes."""
    if leaf.spec.is_value:
        return 0
    return math.prod(leaf.spec.shape) * tree.storage_dtype(leaf.spec.dtype).itemsize


@dataclass(frozen=True)
class Cut:
    """How a leaf is cut.

    Attributes:
        shape: of every slice.
        step: elements from one slice to the next.
        row: elements of a row where slices are rows; else 0.
    """

    shape: tuple[int, ...]
    step: int
    row: int = 0

    def starts(self, size: int) -> Iterator[int]:
        """Where the slices begin, elements."""
        return iter(range(0, size, self.step))


def cut(job: Job, length: int) -> Cut:
    """How a job is cut into slices of about this length."""
    assert job.slices is not None
    if not job.slices.rows:
        length = SMALL if job.size <= SMALL else length
        return Cut((length,), length)
    row = math.prod(job.spec.shape[1:])
    rows = max(1, length // max(row, 1))
    rows = min(rows, job.spec.shape[0])
    return Cut((rows, *job.spec.shape[1:]), rows * row, row)


def slice_length(jobs: Sequence[Job]) -> int:
    """The length of slices that costs the least for some jobs."""
    models = max((len(job.inputs) for job in jobs), default=1)
    lengths = [length for length in SLICES if length * models <= SLICED_ELEMENTS] or SLICES[:1]
    sizes = [
        job.size
        for job in jobs
        if job.size > SMALL and job.slices is not None and not job.slices.rows
    ]

    def cost(length: int) -> int:
        return sum(-(-size // length) * (length + SLICE_COST) for size in sizes)

    return min(reversed(lengths), key=cost)


def widened(array: np.ndarray, kind: np.dtype) -> np.ndarray:
    """An array as programs take it.

    Those that compute in float32 take narrow dtypes as they are, if JAX has arrays of them,
    as that is less to move; all others take what they compute in.

    Args:
        array: of a leaf.
        kind: dtype of the computation.
    """
    if array.dtype.kind == "W":
        array = array.astype(np.complex64)
    elif array.dtype.name in NO_JAX_ARRAYS:
        array = array.astype(np.float32)
    return array if kind == np.float32 else array.astype(kind, copy=False)
