"""setup.cfg declares what vcjax imports, and from which version on."""

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/lowest_versions.py"


def lowest(*extras):
    return subprocess.run([sys.executable, SCRIPT, *extras], capture_output=True, text=True)


def names(constraints):
    return {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in constraints}


def imported():
    """The top-level modules that vcjax imports, wherever it does."""
    for path in sorted((ROOT / "vcjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=aliases):
                    yield from (alias.name.partition(".")[0] for alias in aliases)
                case ast.ImportFrom(module=str(module), level=0):
                    yield module.partition(".")[0]


def test_what_is_imported_is_declared():
    declared = names(lowest("plots").stdout.splitlines())
    providers = metadata.packages_distributions()
    foreign = {name for name in imported() if name in providers} - {"vcjax"}
    assert {"jax", "orbax", "yaml"} <= foreign
    undeclared = {
        module
        for module in foreign
        if not names(providers[module]) & declared and module not in sys.stdlib_module_names
    }
    assert undeclared == set()


def test_every_requirement_has_a_lowest_version():
    done = lowest("plots", "test")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in lines)
    assert {"jax", "orbax-checkpoint", "matplotlib", "pytest"} <= names(lines)
    assert "pytest" not in names(lowest().stdout.splitlines())


def test_an_extra_that_does_not_exist():
    done = lowest("nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("error: setup.cfg has no extra 'nonsense', only plots, test")


@pytest.mark.parametrize("requirement", ["jax", "jax<1", "jax==0.10", "jax>=0.10,<1"])
def test_a_requirement_without_a_lowest_version(requirement, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/lowest_versions.py").write_text(SCRIPT.read_text())
    text = f"[options]\ninstall_requires =\n    {requirement}\n[options.extras_require]\n"
    (tmp_path / "setup.cfg").write_text(text)
    command = [sys.executable, tmp_path / "scripts/lowest_versions.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: setup.cfg: {requirement!r} is not of the form name>=version\n"
