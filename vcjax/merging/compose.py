"""Putting merge methods together, and writing them down.

`chain` runs steps one after the other; `partition` and `masked` give leaf paths
methods of their own; `view_as` sets the axes of leaves; `to_config` and
`from_config` turn a method into plain JSON and back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vcjax import errors
from vcjax.merging.makers import recipe
from vcjax.merging.method import MergeMethod, Transform
from vcjax.merging.steps.basic import take_base
from vcjax.merging.view import View


def chain(*steps: Transform | MergeMethod) -> MergeMethod:
    """A method that runs these steps in order (methods count as their own steps).

    Args:
        *steps: transforms, with exactly one reduction among them.

    Example:
        >>> from vcjax import merging
        >>> mean = merging.chain(merging.weighted_sum(normalize=True))
        >>> merging.merge([{"a": 1.0}, {"a": 3.0}], mean)["a"].item()
        2.0
    """
    flat: list[Transform] = []
    for step in steps:
        if isinstance(step, MergeMethod):
            if step.rules:
                raise errors.MergeError(
                    "a partition cannot be a step of a chain", hint="partition whole chains"
                )
            flat.extend(step.transforms)
        else:
            flat.append(step)
    return MergeMethod("chain", {"steps": tuple(flat)}, tuple(flat))


@recipe
def keep() -> MergeMethod:
    """The base model's leaf (the first model's without a base)."""
    return chain(take_base())


def partition(rules: Mapping[str, MergeMethod], default: MergeMethod | None = None) -> MergeMethod:
    """A method per leaf path: the first glob that matches decides.

    Args:
        rules: `{leaf path glob: method}`; `*` stays within a segment, `**` crosses them.
        default: for leaves that no glob matches; None raises for them.

    Example:
        >>> from vcjax import merging
        >>> method = merging.partition(
        ...     {"head": merging.keep()}, default=merging.average()
        ... )
        >>> merging.merge([{"head": 1.0, "body": 1.0}, {"head": 3.0, "body": 3.0}], method)
        {'body': Array(2., dtype=float32), 'head': Array(1., dtype=float32)}
    """
    parameters: dict[str, Any] = {"rules": dict(rules)}
    pairs = list(rules.items())
    if default is not None:
        parameters["default"] = default
        pairs.append(("**", default))
    return MergeMethod("partition", parameters, rules=tuple(pairs))


def masked(method: MergeMethod, globs: Sequence[str] | str) -> MergeMethod:
    """Merges only the leaves that match; the others are the base's (or first model's).

    Args:
        method: for the leaves that match any of `globs`.
        globs: leaf path globs.
    """
    names = [globs] if isinstance(globs, str) else list(globs)
    return partition(dict.fromkeys(names, method), default=keep())


def view_as(
    method: MergeMethod, views: Mapping[str, View | Sequence[Sequence[int]]]
) -> MergeMethod:
    """The method with the matrix axes of some leaves set by path.

    Args:
        method: any method.
        views: `{leaf path glob: View(inputs, outputs, layers)}`.
    """
    fixed = {glob: View(*(tuple(axes) for axes in view)) for glob, view in views.items()}
    if method.rules:
        rules = tuple((glob, view_as(inner, views)) for glob, inner in method.rules)
        return MergeMethod("view_as", {"method": method, "views": fixed}, rules=rules)
    pairs = (*fixed.items(), *method.views)
    return MergeMethod("view_as", {"method": method, "views": fixed}, method.transforms, (), pairs)
