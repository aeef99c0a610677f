"""Running mergekit's recipes on folders of safetensors in Hugging Face naming."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vcjax import merging, tree
from vcjax.errors import FormatError, MergeError, StructureError
from vcjax.formats import files, sharded
from vcjax.mergekit.methods import Known, known
from vcjax.mergekit.recipe import Recipe, Slice, progress_of_layers
from vcjax.streaming.destination import Progress, fingerprint, run_into_files
from vcjax.streaming.job import Job
from vcjax.streaming.model import Model, of_file, order

LAYER = re.compile(r"(.*?\b(?:layers|layer|h|blocks|block))\.(\d+)\.(.+)", re.DOTALL)
"""Names of tensors that are part of a numbered layer."""

FIRST = re.compile(r"embed|wte|wpe")
"""Tensors outside of layers that come before them; all others come after."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "added_tokens.json", "vocab.txt", "spiece.model"),
    *("chat_template.jinja", "chat_template.json"),
)
CONFIG_FILES = ("generation_config.json",)

RECIPE_FILE = "mergekit_config.yml"


@dataclass(frozen=True, eq=False)
class RecipeRun:
    """A recipe and the models that it names.

    Attributes:
        recipe: what to do.
        models: {name in the recipe: model}.
        folders: {name in the recipe: its folder}.
        seed: for methods that draw random numbers.
    """

    recipe: Recipe
    models: Mapping[str, Model]
    folders: Mapping[str, Path]
    seed: int = 0

    @cached_property
    def known(self) -> Known:
        """What the recipe's method is here."""
        return known(self.recipe.method)

    def jobs(self) -> list[Job]:
        """One for every tensor of the result.

        Raises:
            StructureError: models lack tensors that others have, or shapes differ.
            MergeError: the method cannot be applied.
        """
        return list(self._jobs())

    @cached_property
    def _first(self) -> Model:
        return self.models[self.recipe.slices[0].sources[0].model]

    def _jobs(self) -> Iterator[Job]:
        slices = self.recipe.slices
        loose = [name for name in order(self._first) if not LAYER.fullmatch(name)]
        for name in filter(FIRST.search, loose):
            yield self._job(name, [name] * len(slices[0].sources), name, 0.0, slices[0])
        out = 0
        for part in slices:
            ranges = [source.layers or self._all_layers(source.model) for source in part.sources]
            lengths = {stop - start for start, stop in ranges}
            if len(lengths) > 1:
                raise StructureError(
                    "the models of the recipe have different numbers of layers",
                    problems=[f"{s.model}: {r}" for s, r in zip(part.sources, ranges, strict=True)],
                    hint="name slices of them with layer_range",
                )
            for at, t in enumerate(progress_of_layers(lengths.pop())):
                numbers = [start + at for start, _ in ranges]
                yield from self._layer(part, numbers, out, t)
                out += 1
        for name in loose:
            if not FIRST.search(name):
                yield self._job(name, [name] * len(slices[-1].sources), name, 0.0, slices[-1])

    def _layer(self, part: Slice, numbers: list[int], out: int, t: float) -> Iterator[Job]:
        first = part.sources[0].model
        for name in self._layers(first).get(numbers[0], ()):
            match = LAYER.fullmatch(name)
            assert match is not None
            names = [f"{match[1]}.{number}.{match[3]}" for number in numbers]
            yield self._job(f"{match[1]}.{out}.{match[3]}", names, names[0], t, part)

    @lru_cache  # noqa: B019 - a run lives as long as its command
    def _layers(self, model: str) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in order(self.models[model]):
            if match := LAYER.fullmatch(name):
                found.setdefault(int(match[2]), []).append(name)
        return found

    def _all_layers(self, model: str) -> tuple[int, int]:
        return 0, 1 + max(self._layers(model), default=-1)

    @property
    def layers(self) -> int:
        """How many layers the result has."""
        ranges = (
            part.sources[0].layers or self._all_layers(part.sources[0].model)
            for part in self.recipe.slices
        )
        return sum(stop - start for start, stop in ranges)

    def _job(self, name: str, names: list[str], base_name: str, t: float, part: Slice) -> Job:
        known, base = self.known, part.base or self.recipe.base
        if known.base in ("required", "first") and base is None:
            raise MergeError(f"{self.recipe.method} needs a base model", hint="give base_model:")
        pairs = [(s.model, n) for s, n in zip(part.sources, names, strict=True)]
        grounds = next((pair for pair in pairs if pair[0] == base), None)
        if base is not None and grounds is None:
            grounds = (base, base_name)
        if known.base != "none" and grounds is not None:
            pairs = [pair for pair in pairs if pair[0] != base]
        if known.base == "first" and grounds is not None:
            pairs, grounds = [grounds, *pairs], None
        if known.base == "none":  # the base is a model like the others
            pairs += [] if grounds is None or grounds in pairs else [grounds]
            grounds = None
        inputs = tuple(self._leaf(*pair) for pair in pairs)
        below = None if grounds is None else self._leaf(*grounds)
        _check_shapes(name, inputs if below is None else (*inputs, below))
        models = [model for model, _ in pairs]
        method = self._method(name, t, part, models)
        fewest, most = method.models
        if len(inputs) < fewest or (most is not None and len(inputs) > most):
            raise MergeError(f"{self.recipe.method} cannot merge {len(inputs)} models", path=name)
        spec = (inputs[0] if below is None else below).spec
        if self.recipe.dtype is not None and tree.is_inexact(spec.dtype):
            spec = replace(spec, dtype=self.recipe.dtype)
        weights = (1.0,) * len(models)
        if method.weighted and "weight" in known.each:
            weights = self._each("weight", name, t, part, models)
        return Job(name, spec, inputs, below, method, weights)

    def _leaf(self, model: str, name: str) -> tree.Leaf:
        try:
            return self.models[model].leaves[name]
        except KeyError:
            raise StructureError(
                "the models of the recipe differ",
                problems=[f"{name}: not in {model}"],
                hint="merge models of the same architecture",
            ) from None

    def _each(
        self, name: str, tensor: str, t: float, part: Slice, models: list[str]
    ) -> tuple[float, ...]:
        values = (self.recipe.parameter(name, tensor, t, part, model) for model in models)
        default = self.known.each[name]
        return tuple(default if value is None else _number(name, value) for value in values)

    def _method(
        self, tensor: str, t: float, part: Slice, models: list[str]
    ) -> "merging.MergeMethod":
        shared = []
        for name, default in self.known.shared.items():
            value = self.recipe.parameter(name, tensor, t, part, None)
            value = default if value is None else value
            if value is None:
                raise MergeError(f"{self.recipe.method} needs the parameter {name!r}", path=tensor)
            kind = bool if isinstance(default, bool) else _as_number(name)
            shared.append((name, kind(value)))
        each = [
            (name, self._each(name, tensor, t, part, models))
            for name in self.known.each
            if name != "weight"
        ]
        return _made(self.known.make, tuple(shared), tuple(each))

    def write(
        self, output: Path, progress: Progress | None = None, shard_bytes: int = sharded.SHARD_BYTES
    ) -> list[Path]:
        """Runs the recipe into a folder that transformers can load.

        Returns:
            The files that were written.
        """
        key = fingerprint(
            recipe=self.recipe.text or repr(self.recipe),
            models=[(name, model.fingerprint) for name, model in self.models.items()],
            seed=self.seed,
            shard_bytes=shard_bytes,
        )
        jobs = self.jobs()
        written = run_into_files(
            jobs,
            output,
            {"format": "pt"},
            key,
            self.seed,
            progress=progress,
            shard_bytes=shard_bytes,
        )
        return written + self._write_companions(output, jobs[0].spec.dtype)

    def _write_companions(self, output: Path, dtype: str) -> list[Path]:
        """What a folder needs besides tensors: configuration, tokenizer, card and recipe."""
        main = self.folders[self.recipe.base or self._first.name]
        tokens = self.folders.get(self.recipe.tokenizer or "", main)
        written = []
        copies = [(main, name) for name in CONFIG_FILES]
        copies += [(tokens, name) for name in TOKENIZER_FILES]
        with files.writing(output):
            for folder, name in copies:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, output / name)
                    written.append(output / name)
            texts = {"README.md": self.card(), RECIPE_FILE: self.recipe.text}
            if (main / "config.json").is_file():
                texts["config.json"] = self._config(main / "config.json", dtype)
            for name, text in texts.items():
                (output / name).write_text(text, encoding="utf-8")
                written.append(output / name)
        return written

    def _config(self, path: Path, dtype: str) -> str:
        with files.reading(path, "a model configuration", ValueError):
            fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("torch_dtype", "dtype"):
            if name in fields:
                fields[name] = dtype
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if name in fields and self.layers:
                fields[name] = self.layers
        return json.dumps(fields, indent=2) + "\n"

    def card(self) -> str:
        """The model card, in Markdown, with the recipe."""
        names = [f"- {name}" for name in self.recipe.models]
        base = f" with `{self.recipe.base}` as a base" if self.recipe.base else ""
        fence = "`" * 3
        return "\n".join(
            [
                "---",
                f"base_model: {json.dumps(self.recipe.models)}",
                "library_name: transformers",
                "tags:",
                "- merge",
                "- vcjax",
                "---",
                f"# {self.recipe.method} of {len(self.recipe.models)} models",
                "",
                "Merged with vcjax by the method "
                f"`{self.recipe.method}` ({self.known.paper}){base}.",
                "",
                "The models:",
                "",
                *names,
                "",
                "The recipe:",
                "",
                f"{fence}yaml",
                self.recipe.text.rstrip(),
                fence,
                "",
            ]
        )


def open_recipe(recipe: Recipe, beside: Path, seed: int = 0) -> RecipeRun:
    """Opens the models of a recipe.

    Args:
        recipe: names them.
        beside: folder that relative paths may also start from.
        seed: for methods that draw random numbers.

    Raises:
        FormatError: a model is not there.
    """
    names = [*recipe.models, *([recipe.tokenizer] if recipe.tokenizer else [])]
    folders = {name: _found(name, beside) for name in dict.fromkeys(names)}
    models = {name: replace(of_file(folders[name]), name=name) for name in recipe.models}
    return RecipeRun(recipe, models, folders, seed)


def _found(name: str, beside: Path) -> Path:
    for place in (Path(name).expanduser(), beside / name):
        if place.exists():
            return place
    raise FormatError(
        f"the recipe names the model {name!r}, and there is no such folder",
        hint="vcjax downloads nothing: fetch the model, and give the path of its folder",
    )


def _check_shapes(name: str, leaves: tuple[tree.Leaf, ...]) -> None:
    shapes = {leaf.spec.shape for leaf in leaves}
    if len(shapes) > 1:
        raise StructureError(
            "the models of the recipe differ",
            problems=[f"{name}: {', '.join(str(list(shape)) for shape in sorted(shapes))}"],
            hint="merge models of the same architecture and vocabulary",
        )


def _as_number(name: str) -> Callable[[Any], float]:
    return lambda value: _number(name, value)


def _number(name: str, value: Any) -> float:
    try:
        return float(np.float64(value))
    except (TypeError, ValueError):
        raise MergeError(f"the parameter {name} is {value!r}, no number") from None


@cache
def _made(make: Any, shared: Any, each: Any) -> "merging.MergeMethod":
    """One method for all tensors of the same parameters."""
    return make(dict(shared), dict(each))
