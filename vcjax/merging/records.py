"""Weights and PRNG keys as a commit records them, and back again. Needs JAX for keys alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vcjax.errors import MergeError

if TYPE_CHECKING:
    import jax
    from numpy.typing import ArrayLike


def record_of_weights(weights: "Mapping[str, ArrayLike] | ArrayLike | None") -> Any:
    """Weights as JSON types; those by path as [glob, numbers] pairs, which keep their order."""
    if isinstance(weights, Mapping):
        return [[str(glob), record_of_weights(numbers)] for glob, numbers in weights.items()]
    return None if weights is None else np.asarray(weights, np.float64).tolist()


def weights_of_record(record: Any) -> "dict[str, list[float]] | Sequence[float] | None":
    """What `record_of_weights` took down."""
    by_path = isinstance(record, list) and any(isinstance(element, list) for element in record)
    return dict(map(tuple, record)) if by_path else record


def record_of_key(key: "int | jax.Array | None") -> Any:
    """A PRNG key as JSON types: an int, the words of an untyped key, or those with their kind."""
    if key is None or isinstance(key, int):
        return key
    import jax  # only here: most merges draw no numbers

    if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        words = np.asarray(jax.random.key_data(key)).tolist()
        return {"impl": str(jax.random.key_impl(key)), "words": words}
    return np.asarray(key).tolist()


def key_of_record(record: Any) -> "int | jax.Array | None":
    """What `record_of_key` took down.

    Raises:
        MergeError: it is something else.
    """
    if record is None or isinstance(record, int):
        return record
    import jax

    words = record["words"] if isinstance(record, Mapping) else record
    try:
        array = jax.numpy.asarray(words, "uint32")
        if not isinstance(record, Mapping):
            return array
        return jax.random.wrap_key_data(array, impl=record["impl"])
    except (LookupError, TypeError, ValueError) as error:
        raise MergeError(f"{record!r} is no PRNG key", hint="give key=") from error
