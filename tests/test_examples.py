"""The examples: those that are scripts run; the package is installed, and its plug-ins are used."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vcjax import formats

from .subprocesses import Process, environment

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment in which the example package is installed, by pip, in a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    source, site = folder / "source", folder / "site"
    shutil.copytree(ROOT / "examples" / "vcjax-example", source)  # building leaves files beside it
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--quiet")
    command = (sys.executable, "-m", "pip", "install", *offline, f"--target={site}", source)
    with Process(*command) as process:
        process.finish()
    return environment(PYTHONPATH=os.pathsep.join([str(site), str(ROOT)]), JAX_PLATFORMS="cpu")


@pytest.fixture
def python(installed, processes, tmp_path):
    """Runs Python in an empty folder where the example package is installed: its stdout."""

    def run(*words):
        return processes.start(sys.executable, *words, cwd=tmp_path, env=installed).finish()[0]

    return run


IN_PYTHON = """
import numpy as np
import vcjax
from vcjax import diffing, errors, formats, merging
from vcjax.diffing.renderers import render

assert "median" in merging.methods()
named = merging.from_config("median")  # before anything has imported its module

from vcjax_example.median import median

models = [{"w": np.float32([i, 7])} for i in (1, 2, 60)]
for method in (named, median()):
    assert vcjax.merge(models, method)["w"].tolist() == [2, 7]
print(merging.to_config(named))

tree = {"layer": {"w": np.float16([[1, np.nan]]), "empty": np.zeros((0, 3))}}
formats.write("tree.json", tree, {"by": "me"})
found = formats.read("tree.json")
assert found.metadata == {"by": "me"}
assert {name: (x.dtype.name, x.shape) for name, x in found.tree.items()} == {
    "layer/empty": ("float64", (0, 3)), "layer/w": ("float16", (1, 2))
}
assert np.isnan(found.tree["layer/w"][0, 1])
for write in (
    lambda: formats.write("complex.json", {"z": np.ones(2, complex)}),
    lambda: open("tree.json", "r+").truncate(40) and formats.read("tree.json"),
):
    try:
        write()
    except errors.FormatError as error:
        assert error.hint
        print(error.message.partition(":")[0])

old, new = {"w": np.ones(3), "b": 1}, {"w": np.zeros(3), "b": 1, "c": 2}
print(render("csv", vcjax.diff(old, new)), end="")
"""


def test_the_package_is_used_in_python(python):
    assert python("-c", IN_PYTHON).splitlines() == [
        "{'name': 'median', 'parameters': {}}",
        "JSON cannot hold this",
        "'tree.json' is damaged or not a JSON checkpoint",
        "leaf,status,relative",
        "c,added,",
        "w,changed,1.0",
    ]


COMMANDS = """
init
commit one.npz --branch=one
commit two.npz --branch=two
commit three.npz --branch=three
switch one
merge one two three --whole --method=median
checkout HEAD merged.json
commit merged.json --branch=again
diff HEAD again --exit_code
log -n1 --json
"""

IN_A_SHELL = f"""
from vcjax.cli import main
for line in {COMMANDS!r}.strip().splitlines():
    print(">", line, flush=True)
    assert main(line.split()) == 0, line
"""


def test_the_package_is_used_from_the_shell(python, tmp_path):
    for name, value in {"one": 1, "two": 2, "three": 60}.items():
        formats.write(tmp_path / f"{name}.npz", {"w": np.full((2, 3), value, np.float32)})
    printed = python("-c", IN_A_SHELL)
    leaves = json.loads((tmp_path / "merged.json").read_text())["leaves"]
    assert leaves == {"w": ["float32", [2, 3], [[2.0, 2.0, 2.0]] * 2]}
    document = json.loads(printed.partition("> log -n1 --json\n")[2])
    assert document["commits"][0]["provenance"]["method"]["name"] == "median"


def test_the_commit_that_broke_a_model_is_found(python):
    lines = python(str(ROOT / "examples" / "which_commit_broke_it.py")).splitlines()
    assert lines[0] == "step 17 broke it"
    assert [line.split()[0] for line in lines[1:]] == ["encoder/kernel", "head/bias"]
