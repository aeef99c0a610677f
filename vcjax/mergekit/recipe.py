"""mergekit's YAML recipes: what they say of each tensor.

A recipe names models, or slices of their layers, a method, and parameters: for
all, per slice or per model; each a number, a gradient over the layers of a slice
(`[0, 0.5, 1]`), or a list of filters on tensor names.

Format: https://github.com/arcee-ai/mergekit, README, "Merge Configuration".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcjax import errors
from vcjax.formats import files


@dataclass(frozen=True)
class Source:
    """One model of a slice.

    Attributes:
        model: its path.
        layers: the first layer and the one after the last; None for all.
        parameters: of this model.
    """

    model: str
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Some layers of the result.

    Attributes:
        sources: what they are made of.
        base: the base model of this slice, or None for the recipe's.
        parameters: of this slice.
    """

    sources: tuple[Source, ...]
    base: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A mergekit recipe.

    Attributes:
        method: mergekit's name of it.
        slices: in order; a recipe of `models` is one slice of all layers.
        base: the base model, or None.
        parameters: for all tensors.
        dtype: of the result, or None for the first model's.
        tokenizer: the model whose tokenizer is copied, or None for the base's or first's.
        chat_template: text, or None.
        text: the recipe as it was written.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    text: str = ""

    @property
    def models(self) -> list[str]:
        """Every model that is read, the base last where it is not among the sources."""
        found = [source.model for part in self.slices for source in part.sources]
        found += [part.base for part in self.slices if part.base]
        return list(dict.fromkeys([*found, *([self.base] if self.base else [])]))

    def parameter(self, name: str, tensor: str, t: float, part: Slice, model: str | None) -> Any:
        """What a parameter is for one tensor; None where the recipe does not say.

        What is said of a model in a slice goes before what is said of the slice, and
        that before what is said of all.

        Args:
            name: of the parameter.
            tensor: name of the tensor of the result.
            t: how far through the layers of the slice, 0 to 1.
            part: the slice.
            model: for parameters of one model.
        """
        levels: list[Mapping[str, Any]] = []
        if model is not None:
            levels += [source.parameters for source in part.sources if source.model == model]
        for level in (*levels, part.parameters, self.parameters):
            if name in level:
                value = evaluate(level[name], tensor, t)
                if value is not None:
                    return value
        return None


def evaluate(setting: Any, tensor: str, t: float) -> Any:
    """A setting for one tensor: filters and gradients resolved; None if no filter matches.

    Example:
        >>> evaluate([0, 1, 0], "model.layers.3.mlp.up_proj.weight", 0.25)
        0.5
        >>> evaluate([{"filter": "mlp", "value": 0.3}, {"value": 1}], "lm_head.weight", 0)
        1
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if not setting:
        return None
    if isinstance(setting[0], Mapping):
        for rule in setting:
            wanted = rule.get("filter")
            if wanted in (None, "*") or wanted in tensor:
                return evaluate(rule.get("value"), tensor, t)
        return None
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in setting):
        return setting[int(t * (len(setting) - 1))]
    place = t * (len(setting) - 1)
    low = int(place)
    high = min(len(setting) - 1, low + 1)
    return (1 - (place - low)) * setting[low] + (place - low) * setting[high]


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        FormatError: it is no mergekit recipe, or asks for what vcjax does not do.
        StorageError: it is missing or cannot be read.
    """
    import yaml  # 0.02 s that reading other formats need not wait for

    # PyYAML lets the errors of Python through, of a `!!bool` that is none, or a month 13.
    damage = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
    with files.reading(path, "a mergekit recipe", yaml.YAMLError, *damage):
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
        _expanded_size(found, {})
    return parse_recipe(found, text)


MAX_SIZE = 1_000_000
"""How many values a recipe may hold when all its aliases are written out."""


def _expanded_size(found: Any, known: dict[int, int]) -> int:
    """How many values there are; few lines of aliases of aliases may stand for any number.

    Raises:
        ValueError: they are too many, or one holds itself.
    """
    if not isinstance(found, dict | list):
        return 1
    if id(found) in known:
        if not known[id(found)]:
            raise ValueError("an alias stands for what it is a part of")
        return known[id(found)]
    known[id(found)] = 0
    children = [*found, *found.values()] if isinstance(found, dict) else found
    size = 1 + sum(_expanded_size(child, known) for child in children)
    if size > MAX_SIZE:
        raise ValueError(f"its aliases stand for more than {MAX_SIZE:,} values")
    known[id(found)] = size
    return size


_KEYS = frozenset(
    (
        *("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype"),
        *("tokenizer_source", "tokenizer", "chat_template", "name"),
    )
)


def parse_recipe(found: Any, text: str = "") -> Recipe:
    """The recipe in a parsed YAML document.

    Raises:
        FormatError: it is none, or asks for what vcjax does not do.
    """
    fields = _mapping(found, "the recipe")
    if unknown := sorted(map(repr, fields.keys() - _KEYS)):
        raise _refused(f"the recipe has {', '.join(unknown)}", "remove it")
    if not isinstance(method := fields.get("merge_method"), str):
        raise _refused("the recipe names no merge_method", "for example merge_method: linear")
    if ("models" in fields) == ("slices" in fields):
        raise _refused("a recipe has either models or slices", "give one of them")
    if "models" in fields:
        slices: tuple[Slice, ...] = (Slice(tuple(map(_source, _list(fields, "models")))),)
    else:
        slices = tuple(_slice(part) for part in _list(fields, "slices"))
    dtype = fields.get("out_dtype") or fields.get("dtype")
    return Recipe(
        method.lower(),
        slices,
        _model(fields["base_model"]) if fields.get("base_model") else None,
        _mapping(fields.get("parameters") or {}, "parameters"),
        None if dtype is None else str(dtype).removeprefix("torch."),
        _tokenizer(fields),
        fields.get("chat_template"),
        text,
    )


def _slice(found: Any) -> Slice:
    part = _mapping(found, "a slice")
    base = part.get("base_model")
    sources = tuple(map(_source, _list(part, "sources")))
    if any(source.layers is None for source in sources):
        raise _refused("a source of a slice has no layer_range", "layer_range: [0, 16]")
    lengths = {stop - start for start, stop in (s.layers for s in sources if s.layers)}
    if len(lengths) > 1:
        raise _refused("the sources of a slice have different numbers of layers", "make them equal")
    return Slice(
        sources,
        _model(base) if base else None,
        _mapping(part.get("parameters") or {}, "parameters"),
    )


def _source(found: Any) -> Source:
    fields = _mapping(found, "a model")
    layers = fields.get("layer_range")
    if layers is not None and not (
        isinstance(layers, list)
        and len(layers) == 2
        and all(isinstance(x, int) for x in layers)
        and 0 <= layers[0] < layers[1]
    ):
        raise _refused(f"layer_range: {layers!r} is no range", "layer_range: [0, 16]")
    return Source(
        _model(fields.get("model")),
        None if layers is None else (layers[0], layers[1]),
        _mapping(fields.get("parameters") or {}, "parameters"),
    )


def _model(found: Any) -> str:
    if isinstance(found, Mapping):
        if found.get("lora"):
            raise _refused("a model with a LoRA on top", "merge the adapter into the model first")
        inner = found.get("model", found)
        found = inner.get("path") if isinstance(inner, Mapping) else inner
    if not isinstance(found, str) or not found:
        raise _refused(f"{found!r} is no model", "model: path/of/a/folder")
    if "+" in Path(found).name and not Path(found).exists():
        raise _refused(f"{found!r} has a LoRA on top", "merge the adapter into the model first")
    return found


def _tokenizer(fields: Mapping[str, Any]) -> str | None:
    source = fields.get("tokenizer_source")
    if fields.get("tokenizer"):
        inner = _mapping(fields["tokenizer"], "tokenizer")
        if inner.keys() - {"source"}:
            raise _refused("the recipe edits tokens", "vcjax copies a tokenizer as it is")
        source = inner.get("source")
    if source == "union":
        raise _refused(
            "the recipe asks for a union of tokenizers",
            "vcjax copies a tokenizer as it is: tokenizer_source: base",
        )
    return None if source in (None, "base") else _model(source)


def _mapping(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise _refused(f"{what} is no mapping but {found!r}", "see mergekit's documentation")
    return dict(found)


def _list(fields: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = fields.get(name)
    if not isinstance(found, list) or not found:
        raise _refused(f"{name} is no list of at least one", "see mergekit's documentation")
    return found


def _refused(problem: str, hint: str) -> errors.FormatError:
    return errors.FormatError(f"this recipe cannot be run: {problem}", hint=hint)


def progress_of_layers(count: int) -> Iterator[float]:
    """How far through a slice each of its layers is, for gradients; a single one is the end."""
    return (i / (count - 1) if count > 1 else 1.0 for i in range(count))
