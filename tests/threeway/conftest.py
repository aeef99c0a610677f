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
