"""Merging N models whole, without history: plan jobs, run them, commit or write the result."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vcjax import merging, tree
from vcjax.errors import MergeError, VcjaxError
from vcjax.formats.sharded import SHARD_BYTES
from vcjax.history import LeafEntry
from vcjax.merging.inputs import (
    check_alike,
    check_complex,
    check_globs,
    check_inputs,
    host_weights,
    leaf_statistics,
    statistics_by_path,
)
from vcjax.merging.records import record_of_key, record_of_weights
from vcjax.objects import ObjectStore
from vcjax.streaming.destination import (
    Progress,
    StoreOutput,
    fingerprint,
    run_into_files,
    run_into_store,
    unrepeatable,
)
from vcjax.streaming.job import Job
from vcjax.streaming.model import Model, order


@dataclass(frozen=True)
class Merge:
    """N models, and what is to be made of them.

    Attributes:
        models: in order.
        method: how.
        base: for methods that need it.
        weights: one number per model, or {leaf path glob: numbers}.
        key: PRNG key or int, for random methods.
        dtype: name, of the merged leaves; the first model's by default.
        statistics: as in `vcjax.merge`.
    """

    models: tuple[Model, ...]
    method: merging.MergeMethod
    base: Model | None = None
    weights: Any = None
    key: Any = None
    dtype: str | None = None
    statistics: Sequence[Any] | None = None

    def jobs(self) -> list[Job]:
        """One for every leaf, in the order of the first model's file; whole-model methods' last.

        Raises:
            StructureError: models differ in leaf paths or shapes; each is listed.
            MergeError: the method needs something that was not given, or the reverse.
        """
        models, base, method = self.models, self.base, self.method
        if self.dtype is not None:
            _check_dtype(self.dtype)
        if base is not None and len(models) == 1 and method.models == (2, 2):
            models, base = (base, *models), None  # as `vcjax.merge`: the base is the first of two
        if not models:
            raise MergeError("there is no model to merge", hint="give at least one")
        given = base is not None
        check_inputs(method, len(models), given, self.weights, self.statistics, self.key)
        others = {f"model {number}": model for number, model in enumerate(models[1:], start=2)}
        for who, other in (others | ({"the base": base} if base else {})).items():
            check_alike(models[0].specs, other.specs, who, (models[0].name, other.name))
        paths = order(models[0])
        check_globs(method, self.weights, paths)
        statistics = statistics_by_path(self.statistics, paths)
        jobs = []
        for path in paths:
            inputs = tuple(model.leaves[path] for model in models)
            job = Job(
                path,
                _result_spec(inputs[0].spec, self.dtype),
                inputs,
                base.leaves[path] if base is not None else None,
                method.for_leaf(path),
                host_weights(self.weights, path, len(models)),
                leaf_statistics(statistics, path),
            )
            if job.is_merged:
                check_complex(job.method, path, [leaf.data for leaf in job.leaves])
            jobs.append(job)
        # Methods that look at whole models break ties by the order of leaves: that of the tree,
        # as in `vcjax.merge`, and not where the arrays happen to lie in memory.
        place = {path: number for number, path in enumerate(models[0].leaves)}
        jobs.sort(key=lambda job: place[job.path] if job.rounds else -1)
        return jobs

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that change with anything that changes the result."""
        return fingerprint(
            models=[model.fingerprint for model in self.models],
            base=self.base.fingerprint if self.base else None,
            method=merging.to_config(self.method),
            weights=record_of_weights(self.weights),
            key=record_of_key(self.key),
            dtype=self.dtype,
            statistics=None if self.statistics is None else secrets.token_hex(16),
            **unrepeatable(self.method),
        )

    @property
    def message(self) -> str:
        """What a commit says if nobody said anything."""
        names = [model.name for model in self.models]
        return f"Merge {len(names)} models by {self.method.name}: {', '.join(names)}"

    def provenance(self) -> dict[str, Any]:
        """What a commit records of how it came about; JSON types."""
        return {
            "operation": "merge_models",
            "inputs": [dict(model.origin) for model in self.models],
            "base": dict(self.base.origin) if self.base else None,
            "method": merging.to_config(self.method),
            "weights": record_of_weights(self.weights),
            "key": record_of_key(self.key),
            "dtype": self.dtype,
        }


def to_store(merge: Merge, objects: ObjectStore, progress: Progress | None) -> StoreOutput:
    """Merges into a store; the entries of all leaves are in what `finish` gives."""
    return run_into_store(merge.jobs(), objects, merge.fingerprint, merge.key, progress)


def to_files(
    merge: Merge,
    target: Path,
    *,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Merges into a folder of safetensors, or into one file that ends in ".safetensors".

    A merge that was killed is continued, if the same inputs are merged into the same
    target again.

    Returns:
        The files that were written.
    """
    metadata = {k: v for k, v in merge.models[0].metadata.items() if isinstance(v, str)}
    return run_into_files(
        merge.jobs(),
        target,
        metadata or {"format": "pt"},
        fingerprint(merge=merge.fingerprint, shard_bytes=shard_bytes),
        merge.key,
        progress=progress,
        shard_bytes=shard_bytes,
    )


def as_root(first: Model, entries: Mapping[str, LeafEntry]) -> Any:
    """The tree of the first model, with the entries of the merged leaves."""
    return tree.map_leaves(lambda path, _: entries[path], first.root)


def _check_dtype(name: str) -> None:
    try:
        known = tree.is_inexact(name) and bool(tree.storage_dtype(name))
    except (VcjaxError, TypeError, KeyError):
        known = False
    if not known:
        raise MergeError(
            f"{name!r} is no dtype that merged leaves can have",
            hint="for example float32, bfloat16 or float16",
        )


def _result_spec(spec: tree.LeafSpec, dtype: str | None) -> tree.LeafSpec:
    return replace(spec, dtype=dtype) if dtype is not None and spec.has_mean else spec
