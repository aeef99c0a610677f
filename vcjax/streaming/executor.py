"""Merging leaf after leaf: the next one is read, and the last one taken, while one is computed.

A leaf goes one of these ways:

- *slices*, if the method can (`vcjax.merging.steps.sliced`): so that neither host nor
  device ever holds a whole leaf, and a few compiled programs serve all leaves;
- *folded*, one model's leaf after the other into accumulators, if the method
  folds, for what cannot be read or merged in slices;
- *whole*, the leaf of all models at once;
- *rounds*, for methods that look at whole models: every round reads all leaves.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcjax import tree
from vcjax.merging import Stack
from vcjax.merging import run as runs
from vcjax.merging.inputs import NO_JAX_ARRAYS, as_key, leaf_view
from vcjax.merging.kernels.random_bits import leaf_seed, path_words
from vcjax.streaming.job import Job, cut, leaf_bytes, slice_length
from vcjax.streaming.placement import Flat, Placing, padded
from vcjax.streaming.prefetch import ahead
from vcjax.streaming.slice_run import SliceRun

AHEAD = 2
"""Slices or leaves that wait to be computed, besides the one being read."""

PENDING = 2
"""Results that are being computed while an earlier one is taken."""

HELD_BYTES = 512 * 1024 * 1024
"""How many bytes of one leaf of all models may be held because they cannot be read in parts."""


class Piece(NamedTuple):
    """A part of a merged leaf.

    Attributes:
        job: which leaf.
        start: where the part begins, elements.
        values: flat array in the leaf's own dtype, in host memory; of a leaf that is
            no array its value.
    """

    job: Job
    start: int
    values: Any


@dataclass
class _Loaded:
    """What was read for one step of the computation, on the device."""

    job: Job
    act: Callable[["_Loaded"], Any]
    values: tuple[Any, ...] = ()
    base: Any = None
    start: int = 0
    count: int = 0
    row: int = 0
    nbytes: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def execute(
    jobs: Sequence[Job],
    *,
    done: Collection[str] = (),
    key: Any = None,
    devices: Sequence[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """Merges leaves; gives them out in parts.

    The parts of a leaf follow each other without a gap. Leaves come in the order of
    the jobs, save those of methods that look at whole models, which come last.

    Args:
        jobs: all leaves of the models. How each is cut depends on all of them, and with it
            the last bits of sums over slices.
        done: leaf paths of those that are not needed any more.
        key: PRNG key or int, for random methods.
        devices: to spread slices over; by default all accelerators, or one CPU.
        progress: called with the bytes read so far and in all.
    """
    return _Execution(jobs, done, key, devices, progress).pieces()


class _Execution:
    def __init__(
        self,
        jobs: Sequence[Job],
        done: Collection[str],
        key: Any,
        devices: Sequence[Any] | None,
        progress: Callable[[int, int], None] | None,
    ):
        alone = [job for job in jobs if not job.rounds]
        groups: dict[int, list[Job]] = {}
        for job in jobs:
            if job.rounds:
                groups.setdefault(id(job.method), []).append(job)
        self.done = done
        self.jobs = self._left(alone)
        self.groups = [group for group in groups.values() if self._left(group)]
        self.length = slice_length(alone)
        self.key = None if key is None else as_key(key)
        self.place = Placing(devices)
        self.progress = progress
        self.total = sum(_bytes_read(job) for job in self.jobs)
        for group in self.groups:
            self.total += sum(job.nbytes * job.rounds for job in group)
            self.total += sum(job.nbytes for job in self._left(group))
        self.state: Any = None

    def _left(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.path not in self.done]

    def pieces(self) -> Iterator[Piece]:
        """See `execute`."""
        pending: deque[tuple[_Loaded, Any]] = deque()
        done = 0
        for loaded in ahead(self._load(), AHEAD):
            with _precision(loaded.job):
                result = loaded.act(loaded)
            if self.place.must_wait:
                jax.block_until_ready((result, self.state))
            loaded.values, loaded.base = (), None
            if result is not None:
                pending.append((loaded, result))
            if len(pending) > PENDING:
                yield _piece(*pending.popleft())
            done += loaded.nbytes
            if self.progress is not None:
                self.progress(done, self.total)
        while pending:
            yield _piece(*pending.popleft())

    # -- reading: all of this runs in the thread that reads ahead -----------------------

    def _load(self) -> Iterator[_Loaded]:
        for job in self.jobs:
            with _precision(job):
                yield from self._ways(job)
        for group in self.groups:
            yield from self._load_rounds(group)

    def _ways(self, job: Job) -> Iterator[_Loaded]:
        if not job.is_merged:
            return _load_copy(job)
        if job.slices is not None and not (job.method.foldable and _is_held(job)):
            return self._load_slices(job)
        if job.method.foldable:
            return self._load_models(job)
        return self._load_whole(job)

    def _load_slices(self, job: Job) -> Iterator[_Loaded]:
        assert job.slices is not None
        how, seed = cut(job, self.length), self._seed(job)
        run = SliceRun(job.slices, len(job.inputs), job.size)
        sources = [Flat(leaf, job.compute_dtype) for leaf in job.leaves]
        for number in range(len(job.slices.passes) + 1):
            last = number == len(job.slices.passes)
            for start in how.starts(job.size):
                stop = min(start + how.step, job.size)
                read = [source.read(start, stop) for source in sources]
                arrays = [self.place.slice(padded(array, how.shape)) for array in read]
                yield _Loaded(
                    job,
                    self._merge_slice if last else self._measure_slice,
                    *self._split(job, arrays),
                    start=start,
                    count=stop - start,
                    row=start // how.row if how.row else 0,
                    nbytes=sum(array.nbytes for array in read),
                    extra={"run": run, "seed": seed, "number": number, "last": stop == job.size},
                )

    def _load_models(self, job: Job) -> Iterator[_Loaded]:
        base = None if job.base is None else self._placed(job, job.base)
        state: dict[str, Any] = {"seed": self._seed(job), "sums": None}
        for number, leaf in enumerate(job.inputs):
            extra = {"state": state, "number": number}
            nbytes = leaf_bytes(leaf)
            if number == 0 and job.base is not None:
                nbytes += leaf_bytes(job.base)
            value = (self._placed(job, leaf),)
            yield _Loaded(job, self._fold, value, base, count=job.size, nbytes=nbytes, extra=extra)

    def _load_whole(self, job: Job) -> Iterator[_Loaded]:
        values, base = self._split(job, [self._placed(job, leaf) for leaf in job.leaves])
        extra = {"seed": self._seed(job)}
        yield _Loaded(
            job, self._merge_whole, values, base, count=job.size, nbytes=job.nbytes, extra=extra
        )

    def _load_rounds(self, group: list[Job]) -> Iterator[_Loaded]:
        """All leaves once for every round of every step, and once to merge."""
        steps = group[0].method.transforms
        size = sum(job.size for job in group)
        totals: list[tuple[Any, ...]] = [() for _ in steps]
        rounds = [(i, j) for i, step in enumerate(steps) for j in range(len(step.rounds))]
        for wanted in (*rounds, None):
            for at, job in enumerate(group):
                if wanted is None and job.path in self.done:
                    continue
                with _precision(job):
                    placed = [self._placed(job, leaf) for leaf in job.leaves]
                    values, base = self._split(job, placed)
                    seed = self._seed(job)
                extra = {"at": at, "leaves": len(group), "size": size, "seed": seed}
                extra |= {"totals": totals, "round": wanted, "last": at == len(group) - 1}
                act = self._merge_by_rounds if wanted is None else self._take_round
                yield _Loaded(
                    job, act, values, base, count=job.size, nbytes=job.nbytes, extra=extra
                )

    def _placed(self, job: Job, leaf: tree.Leaf) -> jax.Array:
        return self.place.leaf(leaf, job.compute_dtype)

    def _seed(self, job: Job) -> Any:
        if not job.method.random:
            return None
        assert self.key is not None
        return np.asarray(leaf_seed(self.key, path_words(job.path)))

    @staticmethod
    def _split(job: Job, arrays: list[Any]) -> tuple[tuple[Any, ...], Any]:
        return (tuple(arrays), None) if job.base is None else (tuple(arrays[:-1]), arrays[-1])

    # -- computing: all of this runs in the caller's thread -----------------------------

    def _stack(self, loaded: _Loaded, **given: Any) -> Stack:
        job = loaded.job
        return Stack(
            values=loaded.values,
            base=loaded.base,
            weights=_weights(job),
            seed=loaded.extra.get("seed"),
            row=np.uint32(loaded.row),
            **given,
        )

    def _measure_slice(self, loaded: _Loaded) -> None:
        run, number = loaded.extra["run"], loaded.extra["number"]
        run.measure(number, self._stack(loaded))
        if loaded.extra["last"]:
            run.conclude(number)

    def _merge_slice(self, loaded: _Loaded) -> Any:
        return loaded.extra["run"].merge(self._stack(loaded), _result_dtype(loaded.job))

    def _fold(self, loaded: _Loaded) -> Any:
        job, state, number = loaded.job, loaded.extra["state"], loaded.extra["number"]
        stack = self._stack(loaded, view=leaf_view(job.method, job.path, job.spec.shape))
        one = replace(
            stack,
            weights=stack.weights[number : number + 1],
            seed=state["seed"],
            model=np.int32(number),
        )
        if number == 0:
            state["sums"] = runs.start_fold(job.method.transforms, one)
        state["sums"] = runs.fold_leaf(job.method.transforms, state["sums"], one)
        # Else the programs of all models would wait for each other, and hold their leaves.
        jax.block_until_ready(state["sums"])
        if number < len(job.inputs) - 1:
            return None
        kind = _result_dtype(job)
        return runs.finish_leaf(job.method.transforms, state.pop("sums"), loaded.base, dtype=kind)

    def _whole_stack(self, loaded: _Loaded, **given: Any) -> Stack:
        job = loaded.job
        statistics = None if job.statistics is None else tuple(map(jnp.asarray, job.statistics))
        view = leaf_view(job.method, job.path, job.spec.shape)
        return self._stack(loaded, statistics=statistics, view=view, **given)

    def _merge_whole(self, loaded: _Loaded) -> Any:
        [merged] = runs.run(
            loaded.job.method, [self._whole_stack(loaded)], _result_dtype(loaded.job)
        )
        return merged

    def _stack_after(self, loaded: _Loaded, steps: int) -> Stack:
        """The stack of a leaf after so many steps of a method with rounds."""
        extra = loaded.extra
        given = {"at": np.int32(extra["at"]), "leaves": extra["leaves"], "size": extra["size"]}
        stack = runs.cast(self._whole_stack(loaded, **given))
        for step, totals in zip(
            loaded.job.method.transforms[:steps], extra["totals"], strict=False
        ):
            stack = runs.run_step(step, stack, totals)
        return stack

    def _take_round(self, loaded: _Loaded) -> None:
        at, number = loaded.extra["round"]
        step, totals = loaded.job.method.transforms[at], loaded.extra["totals"]
        found = runs.run_round(step, self._stack_after(loaded, at), totals[at], number=number)
        self.state = found if self.state is None else jax.tree.map(jnp.add, self.state, found)
        if loaded.extra["last"]:
            totals[at], self.state = (*totals[at], self.state), None

    def _merge_by_rounds(self, loaded: _Loaded) -> Any:
        stack = self._stack_after(loaded, len(loaded.job.method.transforms))
        return stack.values[0].astype(_result_dtype(loaded.job))


def _weights(job: Job) -> Any:
    """On the host: compiled functions put them where the leaf is."""
    return np.asarray(job.weights, jax.dtypes.canonicalize_dtype(np.float64))


def _load_copy(job: Job) -> Iterator[_Loaded]:
    first = job.inputs[0]
    data = first.data if first.spec.is_value else tree.canonical(first).reshape(-1)
    yield _Loaded(job, lambda loaded: data, count=job.size, nbytes=leaf_bytes(first))


def _piece(loaded: _Loaded, result: Any) -> Piece:
    job = loaded.job
    if job.spec.is_value:
        return Piece(job, 0, result)
    values = np.asarray(result).reshape(-1)[: loaded.count]
    return Piece(job, loaded.start, values.astype(tree.storage_dtype(job.spec.dtype), copy=False))


def _result_dtype(job: Job) -> Any:
    """What the device computes; dtypes that JAX lacks are rounded to on the host."""
    if job.spec.dtype in NO_JAX_ARRAYS or job.spec.dtype == "complex32":
        return job.compute_dtype
    return tree.storage_dtype(job.spec.dtype)


def _bytes_read(job: Job) -> int:
    if not job.is_merged:
        return leaf_bytes(job.inputs[0])
    sliced = job.slices is not None and not (job.method.foldable and _is_held(job))
    return job.nbytes * (1 + len(job.slices.passes) if sliced and job.slices else 1)


def _is_held(job: Job) -> bool:
    """Whether slices would hold too much of the leaves that cannot be read in parts."""
    whole = [
        leaf_bytes(leaf)
        for leaf in job.leaves
        if isinstance(leaf.data, tree.LazyArray) and leaf.data.read_part is None
    ]
    return len(whole) > 3 and sum(whole) > HELD_BYTES


def _precision(job: Job) -> AbstractContextManager[Any]:
    """Without this JAX would cut 64-bit leaves to 32 bits; others are computed as they are."""
    wide = job.is_merged and any(tree.itemsize(leaf.spec.dtype) >= 8 for leaf in job.leaves)
    return jax.enable_x64(True) if wide else nullcontext()
