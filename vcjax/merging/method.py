"""What a merge method is: transforms of one leaf of N models, and what they need.

In the manner of optax, a `Transform` is a small named tuple of pure functions,
made by a function that takes its coefficients (`trim(density=0.2)`), and a
`MergeMethod` is a chain of them. The decorators `transform` and `recipe` let both
know their name and parameters, so that a merge commit can record them and run them
again (`to_config`, `from_config`). A transform that no such function made works as
well; what a commit records of it says that it cannot be run again.

Transforms are PyTrees: coefficients that are floats or arrays are traced, all
else is static, so that one compiled function serves every value of a scale,
and `vmap` and `grad` go through. One that nothing made by name is static as a whole.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    runtime_checkable,
)

import jax
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from vcjax import errors
from vcjax.merging.shapes import Mask, Place, Seed, Share, Totals, Value
from vcjax.merging.view import View
from vcjax.tree.globs import FirstMatch

if TYPE_CHECKING:
    from vcjax.merging.steps.sliced import Sliced

P = ParamSpec("P")
T = TypeVar("T")
Locality = Literal["element", "leaf", "model"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "base", "weights", "agree", "statistics", "seed", "model", "row", "at"],
    meta_fields=["leaves", "size", "view"],
)
@dataclass(frozen=True)
class Stack:
    """One leaf of N models on its way through a chain.

    Attributes:
        values: the N models or task vectors, in the dtype of the computation;
            after a reduction, the one merged value.
        base: the leaf of the base model, in the same dtype.
        weights: `float[N]`, one per model.
        agree: per model, which elements still take part (set by `elect_sign`).
        statistics: per model, what the method's statistics say of this leaf.
        seed: `uint32[2]`, of the merge's key and the leaf path.
        model: position of `values[0]` among all models (folds see one at a time).
        row: position of the first row in the whole leaf (slices see some rows).
        at: position of this leaf among the leaves of the model.
        leaves: how many leaves the model has.
        size: how many elements the model has.
        view: which axes of the leaf are layers, inputs and outputs.
    """

    values: tuple[Value, ...]
    base: Value | None
    weights: Share
    agree: tuple[Mask, ...] | None = None
    statistics: tuple[Inexact[Array, "..."], ...] | None = None
    seed: Seed | None = None
    model: Place = 0
    row: Place = 0
    at: Place = 0
    leaves: int = 1
    size: int = 0
    view: View | None = None


@runtime_checkable
class Fold(Protocol):
    """How a reduction takes one model at a time, in memory that does not grow with N."""

    def init(self, like: Value) -> PyTree:
        """The accumulators before any model."""
        ...

    def update(self, state: PyTree, value: Value, weight: Float[Array, ""]) -> PyTree:
        """The accumulators with one more model."""
        ...

    def finish(self, state: PyTree) -> Value:
        """The merged value."""
        ...


Apply = Callable[[Stack, Totals], Stack]
Round = Callable[[Stack, Totals], PyTree]
SliceRule = Callable[[np.dtype], "Sliced | None"]
"""The dtype of the computation -> how a step works on slices, or None if it cannot."""


@dataclass(frozen=True, eq=False)
class Transform:
    """One step of a merge method on one leaf.

    A step that treats every element alone (`locality="element"`) runs on slices of a
    leaf too large for memory as it is; another one does if it says how (`slices`).

    Attributes:
        apply: `(stack, totals) -> stack`; `totals` are the results of the rounds.
        rounds: for steps that look at the whole model: each maps a stack (and the
            totals of earlier rounds) to numbers that are summed over all leaves.
        locality: what `apply` must see to be right: single elements, the leaf,
            or the sums of its rounds over the model.
        per_model: each model is treated alone, so that the step may be folded.
        needs_base: the base model must be given.
        statistics: the kind of statistics that it needs ("fisher", "gram"), or None.
        random: it draws random numbers, so a key must be given.
        weighted: it makes use of the weights.
        linear: it works on complex numbers.
        models: fewest and most models.
        fold: for reductions that can take one model at a time.
        folds_away: the fold of the reduction that follows does its work.
        slices: how it works on slices of a leaf, where that is not plain.
        name: what messages and commits call it; that of the function that made it, or by
            default of `apply`.
        parameters: the arguments of the function that made it.
        maker: that function, if `transform` decorates it: a commit can be merged again.

    Example:
        >>> import dataclasses
        >>> from vcjax import merging
        >>> @merging.transform()
        ... def clip(limit: float) -> merging.Transform:
        ...     def apply(stack, totals):
        ...         values = tuple(x.clip(-limit, limit) for x in stack.values)
        ...         return dataclasses.replace(stack, values=values)
        ...     return merging.Transform(apply, locality="element", per_model=True)
        >>> method = merging.chain(clip(1.0), merging.weighted_sum())
        >>> merging.merge([{"w": 5.0}, {"w": 0.5}], method)["w"].item()
        1.5
    """

    apply: Apply
    rounds: tuple[Round, ...] = ()
    locality: Locality = "leaf"
    per_model: bool = False
    needs_base: bool = False
    statistics: str | None = None
    random: bool = False
    weighted: bool = False
    linear: bool = False
    models: tuple[int, int | None] = (1, None)
    fold: Fold | None = None
    folds_away: bool = False
    slices: SliceRule | None = None
    name: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    # Not for `dataclasses.replace`: what it makes is no longer what the maker would make.
    maker: "Maker | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", qualified_name(self.apply))


@dataclass(frozen=True)
class Maker:
    """What made a transform.

    Attributes:
        make: the function.
        static: which of its floats stay static.
    """

    make: Callable[..., Transform]
    static: frozenset[str]


def qualified_name(function: Callable[..., object]) -> str:
    """The name of a function: `module:function`, of vcjax's own the function's alone."""
    module = getattr(function, "__module__", type(function).__module__)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name if module.startswith("vcjax.") else f"{module}:{name}"


def is_static(name: str, value: object, static: frozenset[str]) -> bool:
    """Whether a parameter is part of the program: all but floats, arrays and their stand-ins."""
    if isinstance(value, np.generic):
        return False
    plain = isinstance(value, (str, bool, int, tuple, type(None))) or callable(value)
    return plain or (isinstance(value, float) and name in static)


class _Static(NamedTuple):
    """What of a transform is part of the program: its maker, and which arguments are not."""

    maker: Maker
    traced: tuple[str, ...]
    fixed: tuple[tuple[str, object], ...]


def _flatten(step: Transform) -> tuple[tuple[object, ...], _Static | Transform]:
    if step.maker is None:
        return (), step
    fixed = tuple(
        (key, value)
        for key, value in step.parameters.items()
        if is_static(key, value, step.maker.static)
    )
    traced = {key: x for key, x in step.parameters.items() if key not in dict(fixed)}
    return tuple(traced.values()), _Static(step.maker, tuple(traced), fixed)


def _unflatten(static: _Static | Transform, children: tuple[object, ...]) -> Transform:
    if isinstance(static, Transform):
        return static
    traced = dict(zip(static.traced, children, strict=True))
    return static.maker.make(**dict(static.fixed), **traced)


jax.tree_util.register_pytree_node(Transform, _flatten, _unflatten)


@dataclass(frozen=True)
class MergeMethod:
    """A chain of transforms, or rules that give each leaf path its own method.

    Attributes:
        name: of the recipe, such as "ties".
        parameters: the arguments of the recipe, as `to_config` records them.
        transforms: what is done to a leaf, in order.
        rules: `(leaf path glob, method)`, the first that matches decides;
            transforms are then empty.
        views: `(leaf path glob, view)` for leaves whose axes cannot be derived.
    """

    name: str
    parameters: Mapping[str, Any]
    transforms: tuple[Transform, ...] = ()
    rules: tuple[tuple[str, "MergeMethod"], ...] = ()
    views: tuple[tuple[str, View], ...] = ()

    def _all(self) -> list[Transform]:
        return [*self.transforms, *(step for _, method in self.rules for step in method._all())]

    @property
    def needs_base(self) -> bool:
        """Whether the base model must be given."""
        return any(step.needs_base for step in self._all())

    @property
    def statistics(self) -> frozenset[str]:
        """Kinds of statistics that must be given: "fisher", "gram"."""
        return frozenset(step.statistics for step in self._all() if step.statistics)

    @property
    def random(self) -> bool:
        """Whether a key must be given."""
        return any(step.random for step in self._all())

    @property
    def weighted(self) -> bool:
        """Whether weights change the result."""
        return any(step.weighted for step in self._all())

    @property
    def locality(self) -> Locality:
        """What of a model must be seen at once to merge a leaf."""
        found = {step.locality for step in self._all()}
        return "model" if "model" in found else "leaf" if "leaf" in found else "element"

    @property
    def can_be_made_again(self) -> bool:
        """Whether each step was made by a function that `transform` decorates."""
        return all(step.maker is not None for step in self._all())

    @property
    def models(self) -> tuple[int, int | None]:
        """Fewest and most models."""
        most = [step.models[1] for step in self._all() if step.models[1] is not None]
        return max((step.models[0] for step in self._all()), default=1), min(most, default=None)

    @property
    def foldable(self) -> bool:
        """Whether `vcjax.merging.fold` can take the models one at a time."""
        if self.rules:
            return all(method.foldable for _, method in self.rules)
        if self.statistics:
            return False
        reductions = [i for i, step in enumerate(self.transforms) if step.fold]
        if len(reductions) != 1:
            return False
        before = self.transforms[: reductions[0]]
        return all((step.per_model and not step.rounds) or step.folds_away for step in before)

    def for_leaf(self, path: str) -> "MergeMethod":
        """The method, without rules, that decides the leaf at `path`."""
        if not self.rules:
            return self
        method = self._rules_by_path.find(path)
        if method is None:
            raise errors.MergeError(
                f"no rule of the partition covers the leaf {path!r}",
                hint="give a default=",
                path=path,
            )
        return method.for_leaf(path)

    @functools.cached_property
    def _rules_by_path(self) -> FirstMatch["MergeMethod"]:
        return FirstMatch(self.rules)

    @functools.cached_property
    def views_by_path(self) -> FirstMatch[View]:
        """`views`, to be looked up."""
        return FirstMatch(self.views)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        return f"{self.name}({arguments})"
