"""What a merge is given: taken apart by leaf path, and checked. Every check is here once.

Merges of trees in memory, one model at a time, of stored models and of the sides of
a history all ask here whether models are alike, whether a leaf has a mean, and what
weights and statistics say of it. Leaf paths are those that are stored
(`vcjax.tree.template`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from vcjax.errors import MergeError, StructureError
from vcjax.merging.method import MergeMethod
from vcjax.merging.view import View, derived
from vcjax.tree import CROSSES, FirstMatch, LeafSpec, escape, target_spec, template, unmatched

Tree = PyTree

Numbers = ArrayLike | Sequence[ArrayLike]

Weights = Numbers | Mapping[str, Numbers]
"""`[N]`, one number per model, or `{leaf path glob: [N]}`."""

RandomKey = jax.Array | int
"""A PRNG key, typed or not, or the seed of one."""

NO_JAX_ARRAYS = frozenset(["float6_e2m3fn", "float6_e3m2fn"])
"""Dtypes that `jax.numpy` names, and XLA cannot compute with (jaxlib 0.10)."""


# -- leaves ------------------------------------------------------------------------


def has_mean(leaf: object) -> bool:
    """Whether a leaf in memory is of floating point or complex numbers; see `LeafSpec.has_mean`.

    A Python number in memory becomes an array, and so has one too.
    """
    if isinstance(leaf, (float, complex)):
        return True
    spec = target_spec(leaf)
    return spec is not None and spec.has_mean


def shape_of(leaf: object) -> tuple[int, ...]:
    """The shape of a leaf; that of a plain value is `()`."""
    return tuple(getattr(leaf, "shape", ()))


def is_wide(leaf: object) -> bool:
    """Whether JAX without x64 would cut a leaf's numbers to 32 bits."""
    return getattr(leaf, "dtype", None) in (np.float64, np.complex128)


def by_path(tree: Tree) -> dict[str, object]:
    """`{leaf path: leaf}` of a tree.

    Raises:
        TreeError: two leaves have the same path.
    """
    return template(tree).targets


def check_dtype(path: str, leaf: object) -> None:
    """Raises if a leaf is of floating point numbers that JAX has no arrays of (float6)."""
    kind = getattr(leaf, "dtype", None)
    if kind is not None and str(kind) in NO_JAX_ARRAYS:
        raise MergeError(
            f"{path!r} is of {kind}, of which JAX has no arrays",
            hint="merge it in float32, `x.astype(numpy.float32)`, and round the result",
            path=path,
        )


# -- models that are alike ---------------------------------------------------------


class Outline(NamedTuple):
    """What leaves must have in common to be merged.

    Attributes:
        shape: of the leaf.
        has_mean: whether it is of numbers that have a mean.
    """

    shape: tuple[int, ...]
    has_mean: bool

    @classmethod
    def of(cls, leaf: object) -> "Outline":
        """That of a leaf in memory, or of the spec of a stored one."""
        if isinstance(leaf, LeafSpec):
            return cls(leaf.shape, leaf.has_mean)
        return cls(shape_of(leaf), has_mean(leaf))


def check_alike(
    first: Mapping[str, object],
    other: Mapping[str, object],
    who: str,
    names: tuple[str, str] | None = None,
) -> None:
    """Raises if two models cannot be merged leaf by leaf.

    Args:
        first: leaves, or specs, of the first model by leaf path.
        other: those of the other model.
        who: what the lines about single leaves call the other.
        names: what the message calls both; "model 1" and `who` by default.

    Raises:
        StructureError: leaves are missing, left over, of another shape or kind; each is listed.
    """
    problems = [f"{path}: not in {who}" for path in first if path not in other]
    problems += [f"{path}: in {who} only" for path in other if path not in first]
    for path in first:
        if path not in other:
            continue
        a, b = Outline.of(first[path]), Outline.of(other[path])
        if a.shape != b.shape:
            problems.append(f"{path}: {list(a.shape)} in model 1, {list(b.shape)} in {who}")
        elif a.has_mean != b.has_mean:
            problems.append(f"{path}: floating point in only one of model 1 and {who}")
    if problems:
        one, two = names or ("model 1", who)
        raise StructureError(
            f"{one} and {two} cannot be merged leaf by leaf",
            problems=sorted(problems),
            hint="merge models of the same leaf paths and shapes, or the parts that they share",
        )


def matched(first: Mapping[str, object], tree: Tree, who: str) -> dict[str, object]:
    """The leaves of a tree by leaf path, in the order of the first model's.

    Raises:
        StructureError: the two are not alike.
        MergeError: JAX has no arrays of a leaf's dtype.
    """
    leaves = by_path(tree)
    check_alike(first, leaves, who)
    for path in first:
        check_dtype(path, leaves[path])
    return {path: leaves[path] for path in first}


# -- methods and what they need ----------------------------------------------------


def check_count(
    method: MergeMethod, n: int, given: str | None = None, *, path: str | None = None
) -> None:
    """Raises if a method does not take so many models.

    Args:
        method: of all leaves, or of one.
        n: how many models there are.
        given: how the message ends.
        path: of the leaf, if it is about one.
    """
    fewest, most = method.models
    if fewest <= n and (most is None or n <= most):
        return
    limit = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
    number = fewest
    if fewest != most and n >= fewest:
        limit, number = f"at most {most}", most
    raise MergeError(
        f"{method.name} takes {limit} {'model' if number == 1 else 'models'}"
        + (f"; {n} given" if given is None else given),
        hint=("merge two at a time, or " if (fewest, most) == (2, 2) and n > 2 else "")
        + ("use" if path is None else "settle this leaf by a rule, or use")
        + " a method for so many, such as average()",
        path=path,
    )


def check_needs(
    method: MergeMethod, base: bool, weights: object, statistics: object, key: object
) -> None:
    """Raises if the method lacks something, or would ignore what was given."""
    if method.needs_base and not base:
        raise MergeError(f"{method.name} needs the base model", hint="give base=")
    if method.random and key is None:
        raise MergeError(f"{method.name} draws random numbers", hint="give key=, e.g. key=0")
    if weights is not None and not method.weighted:
        raise MergeError(f"{method.name} has no weights", hint="leave weights= out")
    if method.statistics and statistics is None:
        kinds = ", ".join(sorted(method.statistics))
        raise MergeError(f"{method.name} needs statistics ({kinds})", hint="give statistics=")


def check_inputs(
    method: MergeMethod,
    n: int,
    base: bool,
    weights: Weights | None,
    statistics: Sequence[object] | None,
    key: object,
) -> None:
    """Raises if the method takes another number of models, or other inputs."""
    check_count(method, n)
    check_needs(method, base, weights, statistics, key)
    if statistics is not None and len(statistics) != n:
        raise MergeError(
            f"{len(statistics)} statistics for {n} models", hint="give one for each model"
        )


def check_globs(method: MergeMethod, weights: Weights | None, paths: Sequence[str]) -> None:
    """Raises if a rule of a partition, or weights by path, match no leaf."""
    globs = [glob for glob, _ in method.rules if glob != "**"]
    globs += list(weights) if isinstance(weights, Mapping) else []
    for glob in unmatched(globs, paths):
        raise MergeError(f"no leaf path matches {glob!r}", hint=CROSSES)


def check_complex(method: MergeMethod, path: str, column: Sequence[object]) -> None:
    """Raises if a complex leaf meets a step that orders or elects."""
    if not any(isinstance(x, complex) or _is_complex(x) for x in column):
        return
    for step in method.transforms:
        if not step.linear:
            raise MergeError(
                f"{method.name} cannot merge the complex leaf {path!r}: {step.name} needs an order",
                path=path,
                hint="give it another method, e.g. partition({…: average()}, default=…)",
            )


def _is_complex(leaf: object) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jnp.complexfloating)


# -- what is said of one leaf ------------------------------------------------------


Array = TypeVar("Array", jax.Array, np.ndarray)


def leaf_weights(weights: Weights | None, path: str, n: int) -> jax.Array:
    """The weights `[N]` of the models for one leaf, which may be traced; 1 each by default.

    Raises:
        MergeError: there are not as many as models, or they are no numbers.
    """
    kind = jnp.result_type(float)
    return _weights(weights, path, n, lambda numbers: jnp.asarray(numbers, kind))


def host_weights(weights: Weights | None, path: str, n: int) -> tuple[float, ...]:
    """The same as plain numbers.

    Raises:
        MergeError: as `leaf_weights`.
    """
    array = _weights(weights, path, n, lambda numbers: np.asarray(numbers, np.float64))
    return tuple(array.tolist())


def _weights(
    weights: Weights | None, path: str, n: int, convert: Callable[[Numbers], Array]
) -> Array:
    if isinstance(weights, Mapping):
        weights = FirstMatch(weights.items()).find(path)
    try:
        array = convert(np.ones(n) if weights is None else weights)
    except (TypeError, ValueError) as error:
        raise MergeError(
            f"weights {weights!r} are no numbers", hint="give one number per model", path=path
        ) from error
    if array.shape != (n,):
        raise MergeError(
            f"weights of shape {list(array.shape)} for {n} models",
            hint="give one number per model",
            path=path,
        )
    return array


def statistics_by_path(
    statistics: Sequence[Tree] | None, paths: Sequence[str]
) -> list[dict[str, object]] | None:
    """What the statistics of each model say of leaves, by leaf path.

    They are trees like the models, or parts of such, or mappings whose keys are leaf
    paths; what they say of leaves that the models have not is nothing to the merge.

    Raises:
        MergeError: statistics speak of no leaf of the models.
    """
    if statistics is None:
        return None
    known, found = set(paths), []
    for number, given in enumerate(statistics, start=1):
        numbers = by_path(given)
        if isinstance(given, Mapping):
            named = {key: escape(key) for key in given if key in known}
            numbers = {key: numbers[own] for key, own in named.items() if own in numbers} | numbers
        if numbers and not known & numbers.keys():
            raise MergeError(
                f"the statistics of model {number} speak of none of its leaves, but of "
                f"{next(iter(numbers))!r}",
                hint="give a tree like the model, or {leaf path: array}; a `/` within a key is "
                "written `%2F`",
            )
        found.append(numbers)
    return found


def leaf_statistics(
    numbers: Sequence[Mapping[str, object]] | None, path: str
) -> tuple[object, ...] | None:
    """What the statistics say of a leaf, if they speak of it in every model."""
    if numbers is None:
        return None
    found = tuple(n[path] for n in numbers if path in n)
    if found and len(found) != len(numbers):
        raise MergeError(
            f"statistics of {path!r} are missing in some models",
            hint="give them for every model or for none",
            path=path,
        )
    return found or None


def leaf_view(method: MergeMethod, path: str, shape: tuple[int, ...]) -> View | None:
    """The matrix view of a leaf: set by path, or derived from its shape."""
    view = method.views_by_path.find(path)
    return derived(shape) if view is None else view.check(path, shape)


def as_key(key: RandomKey) -> jax.Array:
    """A PRNG key from a key or an int."""
    return jax.random.key(key) if isinstance(key, int) else key
