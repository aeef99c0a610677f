"""The functions that make transforms and merge methods: decorators that record their arguments.

What a function that `transform` or `recipe` decorates makes is known by the name of the
function, `module:function` in other packages than vcjax, and by its arguments. That
is what commits record, and what they are merged again from.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

from vcjax import errors
from vcjax.merging.method import Maker, MergeMethod, Transform, qualified_name

P = ParamSpec("P")
T = TypeVar("T")

MAKERS: dict[str, Maker] = {}
"""{name of a transform: what makes it}; names of other packages are `module:function`."""

METHODS: dict[str, Callable[..., "MergeMethod"]] = {}
"""{name of a merge method: the function that makes it}; other packages' as above."""


def named_parameters(make: Callable[..., object]) -> inspect.Signature:
    """The signature of a function whose arguments can be recorded.

    Raises:
        MergeError: it has parameters without a name.
    """
    signature = inspect.signature(make)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for parameter in signature.parameters.values():
        if parameter.kind not in by_name:
            raise errors.MergeError(
                f"{qualified_name(make)}: the arguments of {parameter} have no names to be "
                "recorded by",
                hint="give every parameter a name, without * and /",
            )
    return signature


def made_of(kind: type[T], name: str, made: object) -> T:
    """What a function made, if it is of this kind.

    Raises:
        MergeError: it is not.
    """
    if isinstance(made, kind):
        return made
    raise errors.MergeError(
        f"{name} makes {type(made).__name__}, and not a {kind.__name__}",
        hint="`merging.chain` makes a merge method of transforms",
    )


def transform(*static: str) -> Callable[[Callable[P, Transform]], Callable[P, Transform]]:
    """Decorates a function that makes a transform: records its name and arguments.

    A commit that is merged with it can be merged again wherever its module is imported,
    or belongs to an installed package with an entry point in `vcjax.merge_methods`.

    Args:
        *static: float arguments that decide the compiled program (a density, from
            which the number of kept elements is computed exactly). Arrays given
            in their place are traced nevertheless.
    """

    def decorate(make: Callable[P, Transform]) -> Callable[P, Transform]:
        signature, name = named_parameters(make), qualified_name(make)

        @functools.wraps(make)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> Transform:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            made = made_of(Transform, name, make(*args, **kwargs))
            step = replace(made, name=name, parameters=dict(bound.arguments))
            object.__setattr__(step, "maker", maker)
            return step

        maker = MAKERS[name] = Maker(recorded, frozenset(static))
        return recorded

    return decorate


def recipe(make: Callable[P, MergeMethod]) -> Callable[P, MergeMethod]:
    """Decorates a function that makes a merge method: records its name and arguments.

    Example:
        >>> from vcjax import merging
        >>> @merging.recipe
        ... def halfway() -> merging.MergeMethod:
        ...     return merging.chain(merging.weighted_sum(), merging.scale_by(0.5))
        >>> merging.to_config(halfway())["parameters"]
        {}
    """
    signature, name = named_parameters(make), qualified_name(make)

    @functools.wraps(make)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> MergeMethod:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made = made_of(MergeMethod, name, make(*args, **kwargs))
        return replace(made, name=name, parameters=dict(bound.arguments))

    METHODS[name] = recorded
    return recorded


def checked(name: str, value: object, low: float, high: float) -> None:
    """Raises if a coefficient whose value is known lies outside [low, high]."""
    if isinstance(value, tuple):
        for one in value:
            checked(name, one, low, high)
    elif isinstance(value, (int, float)) and not low <= value <= high:
        raise errors.MergeError(
            f"{name}={value} is not between {low} and {high}",
            hint=f"give {name} as a fraction" if high == 1 else None,
        )


def chosen(name: str, value: object, *allowed: object) -> None:
    """Raises if an option is none of those allowed."""
    if value not in allowed:
        raise errors.MergeError(
            f"{name}={value!r} is not an option", hint=f"one of {', '.join(map(repr, allowed))}"
        )
