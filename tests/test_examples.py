"""The examples: those that are scripts run; the package is installed, and its plug-ins are used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vcjax import formats

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "vcjax-example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example package, installed by pip into a folder of its own; gives an environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(EXAMPLE, folder / "source")  # building leaves files beside the source
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--quiet")
    target = folder / "site"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, f"--target={target}", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    paths = os.pathsep.join([str(target), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", "VCJAX_REPO": ""}


@pytest.fixture
def python(installed, tmp_path):
    """Runs Python in an empty folder with the example package installed: its stdout."""

    def run(*words, code=0):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=installed,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


@pytest.fixture
def vcjax_command(python):
    return lambda *words, code=0: python("-m", "vcjax.cli", *words, code=code)


METHODS = """
import numpy as np
import vcjax
from vcjax import merging

assert "median" in merging.methods()
named = merging.from_config("median")

from vcjax_example.median import median

models = [{"w": np.float32([i, 7])} for i in (1, 2, 60)]
for method in (named, median()):
    assert vcjax.merge(models, method)["w"].tolist() == [2, 7]
print(merging.to_config(named))
"""


def test_the_method_is_known_by_its_name(python):
    assert python("-c", METHODS) == "{'name': 'median', 'parameters': {}}\n"


def test_all_three_are_used_from_the_shell(vcjax_command, python, tmp_path):
    for name, value in {"one": 1, "two": 2, "three": 60}.items():
        leaf = {"layer": {"w": np.full((2, 3), value, np.float32), "b": np.arange(3.0)}}
        formats.write(tmp_path / f"{name}.npz", leaf)
    vcjax_command("init")
    for name in ("one", "two", "three"):
        vcjax_command("commit", f"{name}.npz", f"--branch={name}")
    vcjax_command("switch", "one")
    vcjax_command("merge", "one", "two", "three", "--whole", "--method=median")
    vcjax_command("checkout", "HEAD", "merged.json")
    leaves = json.loads((tmp_path / "merged.json").read_text())["leaves"]
    assert leaves["layer/w"] == ["float32", [2, 3], [[2, 2, 2]] * 2]
    vcjax_command("commit", "merged.json", "--branch=again")
    log = json.loads(vcjax_command("log", "one", "-n1", "--json"))["commits"]
    assert log[0]["provenance"]["method"]["name"] == "median"
    assert python("-c", REPORT) == "leaf,status,relative\r\nlayer/w,changed,1.0\r\n"


REPORT = """
import sys
import vcjax
from vcjax.diffing.renderers import render
sys.stdout.reconfigure(newline="")
print(render("csv", vcjax.Repository.find().diff("one~1", "again")), end="")
"""


def test_the_commit_that_broke_a_model_is_found(python):
    lines = python(str(ROOT / "examples" / "which_commit_broke_it.py")).splitlines()
    assert lines[0] == "step 27 broke it"
    assert [line.split()[0] for line in lines[1:]] == ["encoder/kernel", "head/bias"]
