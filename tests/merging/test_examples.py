"""Every docstring example of vcjax.merging runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

from vcjax import merging

MODULES = [module.name for module in pkgutil.walk_packages(merging.__path__, "vcjax.merging.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", merging.methods())
def test_every_method_names_its_source_and_shows_an_example(name: str) -> None:
    text = getattr(merging, name).__doc__
    if name != "keep":
        assert "Source:" in text
        assert ">>>" in text
