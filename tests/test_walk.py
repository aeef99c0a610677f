"""The walks in docs/architecture.md are those that calls take, and none has become longer.

If a test here fails, shorten the walk, or tell in docs/architecture.md what the new file does
there and run `python scripts/walk.py --record`.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from .subprocesses import Process, environment

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"

SECTIONS = {
    "commit": ("A commit", ()),
    "restore": ("A restore", ()),
    "merge by a method": ("A merge by history", ("commit", "restore")),
    "whole-model merge": ("A whole-model merge", ("commit", "restore", "merge by a method")),
    "manager.save": ("A save of the manager", ("commit",)),
}
"""{walk: its heading, and the walks whose files its section does not tell again}."""

RECORDED = {
    name: int(files)
    for name, files in re.findall(r"^\| ([\w. -]+) \| (\d+) \| \d+ \|$", PAGE.read_text(), re.M)
}


def script(*words, code=0):
    """Runs scripts/walk.py: its stdout."""
    command = (sys.executable, "scripts/walk.py", *words)
    with Process(*command, cwd=ROOT, env=environment(JAX_PLATFORMS="cpu")) as process:
        return process.finish(code)[0]


@pytest.fixture(scope="module")
def walks():
    """{walk: its files, in order}."""
    found = json.loads(script("--json"))["walks"]
    assert all(len(walk["files"]) == walk["number"] for walk in found.values())
    return {name: walk["files"] for name, walk in found.items()}


def told(walk):
    """The files in the table of a walk."""
    page = PAGE.read_text().partition(f"\n### {SECTIONS[walk][0]}\n")[2]
    files = re.findall(r"^\| `([\w/.]+)` \| \S.* \|$", page.partition("\n### ")[0], re.M)
    assert files
    return files


def test_no_walk_is_longer_than_recorded(walks):
    assert walks.keys() == RECORDED.keys()
    longer = {name: len(files) for name, files in walks.items() if len(files) > RECORDED[name]}
    assert not longer


@pytest.mark.parametrize("walk", SECTIONS)
def test_the_page_tells_of_every_file_of_a_walk_and_of_no_other(walks, walk):
    files = told(walk)
    assert sorted(set(files)) == sorted(files)
    assert not [file for file in files if file not in walks[walk]]
    known = {*files, *(file for other in SECTIONS[walk][1] for file in told(other))}
    assert not [file for file in walks[walk] if file not in known]


def test_files_are_told_in_their_order(walks):
    """Of walks on which threads do not race."""
    for walk in ("commit", "restore", "manager.save"):
        files = told(walk)
        assert files == [file for file in walks[walk] if file in files]


def test_walks_are_of_the_call_alone(walks):
    """Neither what is imported nor what only comes before the call is on the way."""
    assert walks["log"][0] == "repo/reader.py"
    assert not {"repo/settings.py", "storage/urls.py", "__init__.py"} & {
        file for files in walks.values() for file in files
    }
    assert not [file for file in walks["log"] if file.startswith(("tree/", "objects/"))]


def test_a_walk_that_there_is_not_is_a_usage_error():
    script("--walks=comit", code=1)
    text = script("--walks=log", "--files")
    assert text.splitlines()[2].startswith("| log | ")
    assert "  history/ancestry.py" in text
