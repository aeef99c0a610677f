"""CONTRIBUTING's table of how to add is true: what vcjax has lies where it says."""

import configparser
import importlib
import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vcjax import merging
from vcjax.cli import command_table

from .subprocesses import environment

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| \[(?:a|an) ([\w ]+)\]\(#[\w-]+\) \| `(.+?)` \| `(.+?)` \| `(.+?)` \|$", re.M)
ROWS = {kind: places for kind, *places in ROW.findall((ROOT / "CONTRIBUTING.md").read_text())}
GROUPS = {
    "update": "vcjax.updates",
    "file format": "vcjax.formats",
    "report": "vcjax.reports",
}


def place(kind, name):
    """The file that the table says a thing of some kind is in."""
    return ROOT / ROWS[kind][0].replace("NAME", name)


def declared(group):
    """The entry points of a group, as setup.cfg has them: {name: "module:attribute"}."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options.entry_points"].get(group, "").strip().splitlines()
    return dict(re.split(r"\s*=\s*", line.strip(), maxsplit=1) for line in lines)


def test_the_table_has_a_section_for_each_kind():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert ROWS.keys() == {"command", "merge method", *GROUPS}
    for kind, (_, row, test) in ROWS.items():
        assert re.search(rf"^### An? {kind}$", page, re.M)
        assert (ROOT / row).is_file()
        assert (ROOT / test).is_file()


@pytest.mark.parametrize("name", command_table.names())
def test_a_command_is_one_file_and_one_name(name):
    module = Path(str(importlib.import_module(module_of(name)).__file__))
    assert place("command", module.stem) == module
    assert f'"{name}"' in (ROOT / ROWS["command"][1]).read_text()


def module_of(name):
    """The module that the function of a command is defined in."""
    return command_table.load(name).run.__module__


@pytest.mark.parametrize("name", sorted(set(merging.methods()) - {"keep"}))
def test_a_merge_method_is_one_file_and_one_row(name):
    make = getattr(merging, name)
    module = Path(str(importlib.import_module(make.__module__).__file__))
    assert place("merge method", module.stem) == module
    assert re.search(rf'Row\(\s*"{name}"', (ROOT / ROWS["merge method"][1]).read_text())


@pytest.mark.parametrize("kind", GROUPS)
def test_a_plug_in_is_one_file_and_one_line(kind):
    assert ROWS[kind][1] == "setup.cfg"
    found = declared(GROUPS[kind])
    assert found
    for name, value in found.items():
        module, _, attribute = value.partition(":")
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert path.is_file()
        assert place(kind, path.stem) == path
        assert hasattr(importlib.import_module(module), attribute), name
    installed = {point.name for point in metadata.entry_points(group=GROUPS[kind])}
    assert found.keys() <= installed, "install again: `pip install -e .`"


COMMAND = '''"""`vcjax hello`: a greeting."""

from vcjax import report
from vcjax.cli.command import Command
from vcjax.cli.session import Session


def run(session: Session) -> int:
    """Greets."""
    session.out.report("hello", {"to": session.args[0]}, [report.line(f"hello, {session.args[0]}")])
    return 0


COMMAND = Command(name="hello", summary="Greet somebody", usage="NAME", run=run, arguments=(1, 1))
'''

METHOD = '''"""The mean of the models, halved."""

from vcjax.merging.compose import chain
from vcjax.merging.makers import recipe
from vcjax.merging.method import MergeMethod
from vcjax.merging.steps.basic import scale_by
from vcjax.merging.steps.reductions import weighted_sum


@recipe
def half() -> MergeMethod:
    """Half of the mean."""
    return chain(weighted_sum(normalize=True), scale_by(0.5))
'''

MERGED = """
import numpy as np, vcjax
from vcjax import merging
assert "half" in merging.methods()
methods = merging.half(), merging.from_config("half")
models = [{"w": np.float32([2])}, {"w": np.float32([6])}]
print(*(vcjax.merge(models, method)["w"].tolist() for method in methods))
"""


@pytest.fixture
def copy(tmp_path, processes):
    """A copy of the package to add things to: its folder, and how to run Python on it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vcjax", tmp_path / "vcjax", ignore=ignored)
    here = environment(PYTHONPATH=str(tmp_path))

    def python(*words):
        return processes.start(sys.executable, *words, cwd=tmp_path, env=here).finish()[0]

    return tmp_path, python


def test_a_new_command_takes_what_the_table_says(copy):
    folder, python = copy
    file, table, _ = ROWS["command"]
    (folder / file.replace("NAME", "hello")).write_text(COMMAND)
    text = (folder / table).read_text()
    (folder / table).write_text(text.replace('"Learn": (', '"Learn": ("hello", '))
    assert python("-m", "vcjax.cli", "hello", "you") == "hello, you\n"
    assert json.loads(python("-m", "vcjax.cli", "hello", "you", "--json"))["to"] == "you"
    assert "Greet somebody" in python("-m", "vcjax.cli", "help")


def test_a_new_merge_method_takes_what_the_recipe_says(copy):
    folder, python = copy
    (folder / ROWS["merge method"][0].replace("NAME", "half")).write_text(METHOD)
    with (folder / "vcjax/merging/__init__.pyi").open("a") as file:
        file.write("from .recipes.half import half as half\n")
    assert python("-c", MERGED) == "[2.0] [2.0]\n"
