"""Every docstring example of vcjax.merging runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

from vcjax import merging

MODULES = [module.name for module in pkgutil.walk_packages(merging.__path__, "vcjax.merging.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    # What an example defines is its reader's: under the module's name it would be vcjax's own.
    reader = {"__name__": "__main__"}
    before = merging.methods()
    assert doctest.testmod(importlib.import_module(name), extraglobs=reader).failed == 0
    assert merging.methods() == before


@pytest.mark.parametrize("name", merging.methods())
def test_every_method_names_its_source_and_shows_an_example(name: str) -> None:
    text = getattr(merging, name).__doc__
    if name != "keep":
        assert "Source:" in text
        assert ">>>" in text
