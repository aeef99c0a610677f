"""Updates are found by entry point; plug-ins may be broken, doubled or misnamed."""

import importlib

import pytest

from vcjax import errors, updates
from vcjax.updates import catalogue

from .conftest import install


def test_the_installed_updates(example):
    assert list(updates.installed()) == ["difference", "average", "copy", "pair", "stack"]
    assert updates.update_named("average") is example.AVERAGE
    assert updates.package_of("average") == "example-updates 1.5"
    assert updates.package_of("nothing") == ""


def test_an_unknown_update_is_refused_with_a_hint(example):
    with pytest.raises(errors.UnknownFormatError, match="there is no update 'averag'") as caught:
        updates.update_named("averag")
    assert "did you mean 'average'? install the package" in (caught.value.hint or "")
    assert "installed updates: difference, average" in (caught.value.hint or "")


MODULE = """
class Plug:
    by_regions = True

    def __init__(self, name):
        self.name = name

    def encode(self, bases, new): ...

    def apply(self, bases, parts, region=None): ...

GOOD, OTHER, IMPOSTOR = Plug("good"), Plug("doubled"), Plug("difference")
NUMBER = 42
"""

BROKEN = """
[vcjax.updates]
absent = no_such_module:UPDATE
nonsense = odd_updates:NUMBER
class = odd_updates:Plug
misnamed = odd_updates:GOOD
doubled = odd_updates:OTHER
difference = odd_updates:IMPOSTOR
good = odd_updates:GOOD
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("nonsense", "not a vcjax.updates.Update: encode, apply, by_regions, name missing"),
        ("class", "not a vcjax.updates.Update"),
        ("misnamed", "it is registered as 'misnamed' and calls itself 'good'"),
        ("doubled", "several packages provide it: one 1.5 .* and two 1.5"),
    ],
)
def test_a_broken_plug_in_breaks_nothing_else(tmp_path, monkeypatch, name, message):
    (tmp_path / "odd_updates.py").write_text(MODULE)
    install(tmp_path, "one", BROKEN)
    install(tmp_path, "two", "[vcjax.updates]\ndoubled = odd_updates:GOOD\n")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue._load.cache_clear()
    try:
        assert list(updates.installed()) == ["difference", "good"]
        assert updates.update_named("difference").__class__.__name__ == "ChunkDifference"
        with pytest.raises(errors.UnknownFormatError, match=message) as caught:
            updates.update_named(name)
        assert caught.value.hint == "update or uninstall the package that provides it"
    finally:
        catalogue._load.cache_clear()
        importlib.invalidate_caches()


def test_updates_need_no_store_and_no_jax(processes):
    code = """
        import sys, numpy as np
        from vcjax import updates
        update, contents = updates.update_named("difference"), []
        for value in (1, 2):
            contents.append(updates.ArrayContent(np.full(3, value)))
        parts = update.encode(contents[:1], contents[1:])
        assert update.apply(contents[:1], parts).tolist() == [2, 2, 2]
        print(sorted({"jax", "tensorstore", "vcjax.objects"} & set(sys.modules)))
    """
    assert processes.python(code).finish()[0] == "[]\n"


def test_the_public_names():
    assert set(updates.__all__) == {
        *("ArrayContent", "BaseLeaf", "Content", "Difference", "FIRST", "Index", "MAX_DEPTH"),
        *("MAX_READS", "MAX_SHARE", "Parts", "Region", "Update", "check_pair", "choose_base"),
        *("installed", "package_of", "sources", "update_named"),
    }
