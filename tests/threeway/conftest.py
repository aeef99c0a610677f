"""Branches whose merge has conflicts."""

import pytest

from .sides import BASE, OURS, THEIRS


@pytest.fixture
def fork(repo):
    """Branches "main" and "side" with four conflicts: three of numbers, one of structure."""
    repo.commit(BASE, "base")
    repo.branch("side")
    repo.commit(THEIRS, "theirs", branch="side")
    repo.commit(OURS, "ours")
    return repo


@pytest.fixture(autouse=True, scope="module")
def compiled(compile_quickly):
    """Programs are compiled without most optimisations: each merge has its own."""
