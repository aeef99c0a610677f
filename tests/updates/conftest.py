"""Installs the example package: a folder on the path with its module and its metadata."""

import importlib
import sys
from pathlib import Path

import pytest

from vcjax.updates import catalogue

METADATA = "Metadata-Version: 2.1\nName: example-updates\nVersion: 1.5\n"
ENTRY_POINTS = """
[vcjax.updates]
average = example_updates:AVERAGE
pair = example_updates:PAIR
stack = example_updates:STACK
copy = example_updates:COPY
"""


def install(folder, name="example-updates", entry_points=ENTRY_POINTS):
    """Writes what pip would write of a package with these entry points."""
    info = folder / f"{name.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA.replace("example-updates", name))
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """The folder that the example package is installed in."""
    folder = tmp_path_factory.mktemp("site")
    source = Path(__file__).with_name("example_updates.py").read_text()
    (folder / "example_updates.py").write_text(source)
    install(folder)
    return folder


@pytest.fixture
def example(package, monkeypatch):
    """The module of the example package, which is installed."""
    monkeypatch.syspath_prepend(package)
    catalogue._load.cache_clear()
    module = importlib.import_module("example_updates")
    module.reads.clear()
    yield module
    module.COPY.bent = None
    sys.modules.pop("example_updates")
    catalogue._load.cache_clear()


@pytest.fixture
def uninstall(package, monkeypatch):
    """A function after which the example package is not installed any more."""

    def gone():
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(package)])
        importlib.invalidate_caches()
        catalogue._load.cache_clear()

    return gone
