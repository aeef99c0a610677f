"""What vcjax uses of JAX and JAX does not make public.

Everything else in vcjax asks here (docs/architecture.md has the table). Importing this
does not load JAX.
"""

from typing import Any


def coordination_client() -> Any:
    """The client of JAX's coordination service; None before `jax.distributed.initialize`.

    It keeps messages under keys: `key_value_set`, `blocking_key_value_get_bytes` and their
    like. There is no public name for it; Orbax, Flax and others reach it in the same way.
    """
    from jax._src import distributed

    return distributed.global_state.client


def is_too_late(error: BaseException) -> bool:
    """Whether the coordination service had no answer within the time that it was given.

    It raises JaxRuntimeError for everything; the status is in the text alone.
    """
    return "DEADLINE_EXCEEDED" in str(error)
