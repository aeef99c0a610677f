"""Every test of this folder compiles, and most of them much."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled(compile_quickly):
    """Programs are compiled without most optimisations."""
