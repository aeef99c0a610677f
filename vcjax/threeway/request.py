"""From what a user asks of a merge to a `MergeRequest`, and what further decisions make of it.

Needs no JAX, unless a method comes with parameters.
"""

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from vcjax import merging
from vcjax.history import Commit, MergeRequest, checked_metadata, checked_metrics
from vcjax.history.commit import default_author
from vcjax.merging.records import record_of_key, record_of_weights
from vcjax.threeway.rules import Rules, as_pairs, check_rules

if TYPE_CHECKING:
    import jax
    from numpy.typing import ArrayLike

    from vcjax.merging import MergeMethod


class Decisions(TypedDict, total=False):
    """What may be decided of a merge, when it begins or later.

    Attributes:
        method: a merge method, its name, or {"name": …, "parameters": …}.
        resolve: a side for all conflicts, or by leaf path glob.
        weights: for the method, one per side, or {leaf path glob: numbers}.
        key: for random methods.
        message: of the commit.
        metrics: of the commit, {name: number}.
        author: of the commit.
    """

    method: "MergeMethod | str | Mapping[str, Any] | None"
    resolve: Rules | None
    weights: "Mapping[str, ArrayLike] | ArrayLike | None"
    key: "int | jax.Array | None"
    message: str | None
    metrics: Mapping[str, Any] | None
    author: str | None


def asked(
    target: str,
    sides: Sequence[Commit],
    names: Sequence[str],
    decisions: Decisions,
    metadata: Mapping[str, Any] | None = None,
) -> MergeRequest:
    """What is asked for.

    Args:
        target: full name of the ref that is to move, or "HEAD".
        sides: what is merged, ours first.
        names: of the sides, as the user wrote them.
        decisions: how.
        metadata: of the commit, JSON types.

    Raises:
        MergeError: `method` is no merge method.
    """
    _check_names(decisions)
    ours, *theirs = (side.digest for side in sides)
    return MergeRequest(
        target=target,
        ours=ours,
        theirs=tuple(theirs),
        names=tuple(names),
        rules=as_pairs(decisions.get("resolve")),
        method=method_record(decisions.get("method")),
        weights=record_of_weights(decisions.get("weights")),
        key=record_of_key(decisions.get("key")),
        message=decisions.get("message"),
        author=decisions.get("author") or default_author(),
        metadata=checked_metadata(dict(metadata or {})),
        metrics=checked_metrics(decisions.get("metrics")),
    )


def method_record(
    method: "MergeMethod | str | Mapping[str, Any] | None",
) -> Mapping[str, Any] | None:
    """A method as a request holds it. A plain name is looked up when it is needed.

    Raises:
        MergeError: it is no merge method.
    """
    if method is None:
        return None
    if isinstance(method, str) and _is_recipe(method):
        return {"name": method, "parameters": {}}
    from vcjax.merging.config import as_method

    found = as_method(method)
    return None if found is None else merging.to_config(found)


def _is_recipe(name: str) -> bool:
    """Whether a file in `vcjax.merging.recipes` defines a method of this name.

    Told without importing it, and so JAX, which takes 0.9 s.
    """
    definition = f"\n@recipe\ndef {name}("
    files = importlib.resources.files("vcjax.merging.recipes").iterdir()
    return any(definition in file.read_text("utf-8") for file in files if file.name[-3:] == ".py")


def decided(request: MergeRequest, decisions: Decisions) -> MergeRequest:
    """The request after further decisions.

    Later rules for paths go before earlier ones; a side or a method for everything goes
    after all, since it is about what is left.

    Raises:
        MergeError: a side that the merge does not have, or no merge method.
    """
    _check_names(decisions)
    new = check_rules(decisions.get("resolve"), request.names)
    method = method_record(decisions.get("method"))
    paths = tuple(rule for rule in new if rule[0] != "**")
    rest = tuple(rule for rule in new if rule[0] == "**")
    former = tuple(rule for rule in request.rules if rule[0] not in dict(new))
    leaves_some, left_some = ("method" in dict(rules).values() for rules in (new, request.rules))
    had_all = request.method is not None and not left_some
    if (method is not None and not leaves_some) or (had_all and leaves_some):
        rest = (*rest, ("**", "method"))
    if method is not None:
        request = replace(request, method=method, weights=None)  # which were for another one
    given = {
        "weights": record_of_weights(decisions.get("weights")),
        "key": record_of_key(decisions.get("key")),
        "message": decisions.get("message"),
        "metrics": checked_metrics(decisions.get("metrics")) or None,
        "author": decisions.get("author"),
    }
    given = {name: value for name, value in given.items() if value is not None}
    return replace(request, rules=(*paths, *former, *rest), **given)


def _check_names(decisions: Decisions) -> None:
    """Raises as Python does for a keyword argument that there is not."""
    for name in decisions:
        if name not in Decisions.__annotations__:
            raise TypeError(f"merge() got an unexpected keyword argument {name!r}")
