"""Every test of this folder compiles the figures of a diff, for many shapes."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled(compile_quickly):
    """Programs are compiled without most optimisations."""
