import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """These tests compile hundreds of tiny programs; optimising them takes the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
