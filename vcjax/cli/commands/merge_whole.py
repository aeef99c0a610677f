"""`vcjax merge --recipe`, `--output` and `--whole`: N models at once, without history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcjax import merging, report
from vcjax.cli import method_spec
from vcjax.cli.command import UsageError
from vcjax.cli.session import Session
from vcjax.cli.values import json_pairs, metrics
from vcjax.errors import RepositoryNotFoundError, RevisionError

if TYPE_CHECKING:
    from vcjax.merging import MergeMethod
    from vcjax.streaming.model import Model


def run_recipe(session: Session) -> int:
    """Runs a mergekit recipe."""
    values = session.flags
    if session.args or values.method or values.weights:
        raise UsageError("a recipe names its models and method", hint="leave the others out")
    if values.output is None:
        raise UsageError("--recipe needs --output", hint="--output=FOLDER")
    from vcjax.mergekit.recipe import read_recipe
    from vcjax.mergekit.recipe_run import open_recipe

    path = Path(values.recipe)
    run = open_recipe(read_recipe(path), path.parent, values.seed or 0)
    with session.out.progress(f"merging by {path.name}") as progress:
        written = run.write(Path(values.output), progress, _shard_bytes(values))
    return _report(session, run.recipe.method, run.recipe.models, written)


def run_models(session: Session) -> int:
    """Merges models whole, into files or a commit."""
    values = session.flags
    if not session.args:
        raise UsageError("no model is named", hint="vcjax merge --output=DIR A B")
    if values.resolve or values.rule:
        raise UsageError("whole models have no conflicts", hint="leave --resolve and --rule out")
    if values.output and values.whole:
        raise UsageError("--output writes files, --whole commits", hint="give one of them")
    method = method_of(values) or merging.average()
    key = values.seed if method.random else None
    if method.random and key is None:
        raise UsageError(f"{method.name} draws random numbers", hint="give --seed=0")
    models = [model_of(session, name) for name in session.args]
    base = None if values.base is None else model_of(session, values.base)
    weights = weights_of(values)
    with session.out.progress(f"merging {len(models)} models") as progress:
        if values.whole:
            commit = session.repo.merge_models(
                models,
                method,
                base=base,
                weights=weights,
                key=key,
                dtype=values.dtype,
                message=values.message,
                branch=values.branch,
                metrics=metrics(values.metric),
                author=session.author,
                progress=progress,
            )
        else:
            from vcjax.streaming.merge import Merge, to_files

            merge = Merge(tuple(models), method, base, weights, key, values.dtype)
            written = to_files(
                merge, Path(values.output), progress=progress, shard_bytes=_shard_bytes(values)
            )
            return _report(session, method.name, session.args, written)
    session.out.line(f"Merged: {commit.digest[:8]} {commit.summary}")
    fields = {"outcome": "merged", "commit": report.commit_document(commit), "decisions": {}}
    session.out.document("merge", {**fields, "conflicts": []})
    return 0


def model_of(session: Session, name: str) -> Model:
    """What a word names: a revision, else a file, a folder of safetensors, or one of Orbax.

    Raises:
        RevisionError: none of them.
    """
    from vcjax.formats.sharded import is_folder
    from vcjax.streaming import model as models

    place = Path(name)
    if place.is_dir() and not is_folder(place):
        from vcjax.orbax.files.merge_input import of_orbax

        return of_orbax(place)
    if place.exists():
        return models.of_file(place)
    try:
        return session.repo.model(name)
    except (RevisionError, RepositoryNotFoundError) as error:
        if isinstance(error, RevisionError):
            error.add_hint("there is no file of this name either")
        raise


def _report(session: Session, method: str, models: list[str], written: list[Path]) -> int:
    shards = [path for path in written if path.suffix == ".safetensors"]
    size = report.format_bytes(sum(path.stat().st_size for path in shards))
    session.out.line(f"Merged {len(models)} models by {method}: {shards[0].parent}, {size}")
    fields = {"method": method, "models": models, "files": [str(path) for path in written]}
    session.out.document("merge_files", fields)
    return 0


def _shard_bytes(values: Any) -> int:
    return int(values.shard_size * 1e9)


def method_of(values: Any) -> MergeMethod | None:
    """The method that the flags name."""
    extra = json_pairs("method_args", values.method_args)
    if values.method is None:
        if extra:
            raise UsageError("--method_args needs --method", hint="say which: --method=ties")
        return None
    name, parameters = method_spec.combined(values.method, extra)
    return merging.from_config(name, parameters)


def weights_of(values: Any) -> list[float] | None:
    """The numbers of `--weights`."""
    if values.weights is None:
        return None
    try:
        return [float(text) for text in values.weights]
    except ValueError as error:
        raise UsageError(f"--weights: {error}", hint="write --weights=0.7,0.3") from error
