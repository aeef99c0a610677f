"""Formats are found by content, suffix or name, and plug-ins may be broken."""

from pathlib import Path

import numpy as np
import pytest

from vcjax import errors, formats
from vcjax.formats import registry


def test_an_unknown_format_is_refused_with_a_hint(tmp_path):
    with pytest.raises(errors.FormatError) as caught:
        formats.format_of("model.safetensor")
    assert "did you mean '.safetensors'? known suffixes: .msgpack" in (caught.value.hint or "")
    with pytest.raises(errors.FormatError, match="no checkpoint format 'msgpac'") as caught:
        formats.format_named("msgpac")
    assert "did you mean 'msgpack'?" in (caught.value.hint or "")
    (tmp_path / "noise").write_bytes(b"\0" * 100)
    with pytest.raises(errors.FormatError, match="no known checkpoint format"):
        formats.read(tmp_path / "noise")


class Entry:
    """A stand-in for importlib.metadata.EntryPoint."""

    def __init__(self, name, value, plug_in):
        self.name, self.value, self.plug_in = name, value, plug_in

    def load(self):
        if isinstance(self.plug_in, Exception):
            raise self.plug_in
        return self.plug_in


class Greedy:
    name = "greedy"
    suffixes = (".greedy", ".tar.npz")

    def sniff(self, head):
        if head == b"explode":
            raise RuntimeError("boom")
        return True

    def read(self, path):
        return formats.Checkpoint({"path": str(path)})

    def write(self, path, tree, metadata):
        Path(path).write_text("greedy")


@pytest.fixture
def plug_ins(monkeypatch):
    own = [
        Entry(form.name, f"vcjax.formats.{form.name}:FORMAT", form)
        for form in formats.formats().values()
    ]
    found = [
        Entry("broken", "a:b", ImportError("no module named a")),
        Entry("nonsense", "c:d", 42),
        Entry("npz", "impostor:FORMAT", Greedy()),
        Entry("greedy", "g:FORMAT", Greedy()),
        *own,
    ]
    monkeypatch.setattr(registry.distributions, "entry_points", lambda group: found)
    registry._load.cache_clear()
    yield
    registry._load.cache_clear()


@pytest.mark.usefixtures("plug_ins")
def test_a_broken_plug_in_breaks_nothing_else(tmp_path):
    assert list(formats.formats()) == ["msgpack", "npz", "safetensors", "greedy"]
    with pytest.raises(errors.FormatError, match="'broken' cannot be loaded: ImportError: no mod"):
        formats.format_named("broken")
    with pytest.raises(errors.FormatError, match="sniff, read, write, suffixes, name missing"):
        formats.format_named("nonsense")
    assert formats.format_named("npz").name == "npz"
    formats.write(tmp_path / "file.npz", {"a": np.ones(3)})
    np.testing.assert_array_equal(formats.read(tmp_path / "file.npz").tree["a"], np.ones(3))
    (tmp_path / "other").write_bytes(b"explode")
    with pytest.raises(errors.FormatError, match="no known"):
        formats.read(tmp_path / "other")
    assert formats.format_of("new.tar.npz").name == "greedy"
    formats.write(tmp_path / "new.greedy", {})
    assert formats.read(tmp_path / "new.greedy").tree["path"].endswith("new.greedy")


def test_the_public_names():
    assert sorted(formats.__all__) == sorted(
        ["Checkpoint", "Format", "format_named", "format_of", "formats", "read", "write"]
    )
