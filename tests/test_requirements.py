"""setup.cfg declares what vcjax imports, and from which version on."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/lowest_versions.py"


@pytest.fixture
def lowest(processes):
    """Runs the script for some extras: what it prints, to stdout and to stderr."""

    def run(*extras, code=0, script=SCRIPT):
        return processes.start(sys.executable, script, *extras).finish(code)

    return run


def names(constraints: Iterable[str]) -> set[str]:
    return {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in constraints}


def imported() -> Iterator[str]:
    """The top-level modules that vcjax imports, wherever it does."""
    for path in sorted((ROOT / "vcjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=aliases):
                    yield from (alias.name.partition(".")[0] for alias in aliases)
                case ast.ImportFrom(module=str(module), level=0):
                    yield module.partition(".")[0]


def test_what_is_imported_is_declared(lowest):
    declared = names(lowest("plots")[0].splitlines())
    providers = metadata.packages_distributions()
    foreign = {name for name in imported() if name in providers} - {"vcjax"}
    assert {"jax", "orbax", "yaml"} <= foreign
    assert {name for name in foreign if not names(providers[name]) & declared} == set()


def test_every_requirement_has_a_lowest_version(lowest):
    lines = lowest("plots", "test")[0].splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in lines)
    assert {"jax", "orbax-checkpoint", "matplotlib", "pytest"} <= names(lines)
    assert "pytest" not in names(lowest()[0].splitlines())


def test_an_extra_that_does_not_exist(lowest):
    said = lowest("nonsense", code=1)[1]
    assert said.startswith("error: setup.cfg has no extra 'nonsense', only plots, test")


@pytest.mark.parametrize("requirement", ["jax", "jax<1", "jax==0.10", "jax>=0.10,<1"])
def test_a_requirement_without_a_lowest_version(lowest, requirement, tmp_path):
    script = tmp_path / "scripts" / SCRIPT.name
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text())
    text = f"[options]\ninstall_requires =\n    {requirement}\n[options.extras_require]\n"
    (tmp_path / "setup.cfg").write_text(text)
    said = lowest(code=1, script=script)[1]
    assert said == f"error: setup.cfg: {requirement!r} is not of the form name>=version\n"
