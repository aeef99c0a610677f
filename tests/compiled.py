"""What JAX has compiled: how many programs, which it shows under private names, and their needs."""

from typing import Any

import jax


def clear_programs(function: Any) -> None:
    """Forgets what a jitted function has compiled."""
    function.clear_cache()


def program_count(function: Any) -> int:
    """How many programs a jitted function has compiled and not forgotten."""
    return function._cache_size()


def scratch_bytes(compiled: jax.stages.Compiled) -> int:
    """The memory that a program needs besides its arguments and results, in bytes."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes
