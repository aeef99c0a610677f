"""The tests lie as the packages do, and none of them depends on another one."""

import ast
import threading
from pathlib import Path

import pytest

import vcjax

from . import leftovers
from .leftovers import Leftovers

TESTS = Path(__file__).parent
PACKAGE = Path(vcjax.__file__).parent

OF_NO_PACKAGE = {
    "data",  # repositories of old versions
    "faults",  # what goes wrong with storage, for all packages that store
}

AT_THE_ROOT = {
    "compiled.py",
    "conftest.py",
    "leaf_kinds.py",
    "leftovers.py",
    "subprocesses.py",
    "test_contributing.py",  # the pages for contributors
    "test_docs.py",  # the pages for users
    "test_examples.py",
    "test_layers.py",  # who may import whom
    "test_layout.py",
    "test_pages.py",  # what pages point to
    "test_private_names.py",  # what other libraries do not promise
    "test_requirements.py",  # what setup.cfg declares
    "test_scripts.py",
    "test_signatures.py",  # the types of all packages
    "test_walk.py",
}
"""Files that span packages: helpers, and what they test where their names do not say it."""

PROCESSES = {"subprocess", "pty", "multiprocessing"}


def is_shown(path: Path) -> bool:
    return not path.name.startswith(("_", "."))


def folders(root: Path) -> set[str]:
    found = (path for path in root.rglob("*") if path.is_dir() and any(path.glob("*.py")))
    relative = (path.relative_to(root) for path in found)
    return {str(path) for path in relative if all(is_shown(Path(part)) for part in path.parts)}


def modules() -> list[Path]:
    return sorted(path for path in TESTS.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The packages that a file imports anywhere; not those of programs that it holds as text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_folder_is_that_of_a_package():
    assert len(folders(PACKAGE)) > 15
    assert folders(TESTS) - folders(PACKAGE) <= OF_NO_PACKAGE


def test_only_what_spans_packages_lies_at_the_root():
    assert {path.name for path in TESTS.glob("*.py")} <= AT_THE_ROOT


def test_processes_are_started_in_one_place():
    """There they are ended, too."""
    starting = {str(path.relative_to(TESTS)) for path in modules() if PROCESSES & imported(path)}
    assert starting == {"subprocesses.py"}


def test_nothing_sleeps():
    """A busy machine needs longer, and a quiet one less: one waits for what is to come."""
    calls = {
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "sleep"
    }
    assert calls == set()


@pytest.fixture
def at_once(monkeypatch):
    """Nothing is given time to end."""
    monkeypatch.setattr(leftovers, "GRACE", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_thread_that_is_left_is_found():
    before, go = Leftovers(), threading.Event()
    thread = threading.Thread(target=go.wait, name="left behind")
    thread.start()
    try:
        assert before.found() == ["the thread 'left behind'"]
    finally:
        go.set()
        thread.join()
    assert before.found() == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.usefixtures("at_once")
def test_a_process_that_is_left_is_found(processes):
    before = Leftovers()
    process = processes.python("input()")
    assert f"the process {process.pid}" in before.found()
    process.finish(1)
    assert f"the process {process.pid}" not in before.found()


def test_processes_end_with_all_that_they_started(processes):
    code = """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"])
        child.wait()
    """
    process = processes.python(code)
    assert process.read_line() == "up"
    process.kill()
    # The end of its output, which the child holds as well, comes once both have gone.
    assert process.finish(-9) == ("", "")
