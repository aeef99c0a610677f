"""Merge methods of packages that are installed beside vcjax, each in a process of its own."""

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vcjax
from vcjax import merging

from ..subprocesses import Processes, environment

MODULE = '''
import dataclasses
from vcjax import merging

@merging.transform()
def shrink(factor: float) -> merging.Transform:
    def apply(stack, totals):
        values = tuple(factor * x for x in stack.values)
        return dataclasses.replace(stack, values=values)
    return merging.Transform(apply, locality="element", linear=True)

def halve(factor: float = 0.5, times: int = 1) -> merging.MergeMethod:
    """The mean, made smaller."""
    steps = [shrink(factor)] * times
    return merging.chain(merging.weighted_sum(normalize=True), *steps)

@merging.recipe
def other(factor: float = 0.5) -> merging.MergeMethod:
    return halve(factor)

def nonsense():
    return 3
'''


def install(folder: Path, name: str, entries: str, module: str = MODULE) -> None:
    """An installed distribution: a module, and the metadata that `pip install` writes."""
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vcjax.merge_methods]\n{entries}\n")


@pytest.fixture
def run(tmp_path: Path, processes: Processes) -> Any:
    """Runs Python with the distributions of `tmp_path / "site"` installed: (stdout, stderr)."""
    site = tmp_path / "site"
    site.mkdir()
    given = environment()
    given["PYTHONPATH"] = os.pathsep.join([str(site), given["PYTHONPATH"]])

    def call(*words: str, code: int = 0) -> tuple[str, str]:
        return processes.start(sys.executable, *words, env=given, cwd=tmp_path).finish(code)

    return call


@pytest.fixture
def merged(tmp_path: Path) -> Any:
    """A repository of two models."""
    repo = vcjax.Repository.init(tmp_path / "repo")
    for number, name in enumerate(("one", "two")):
        repo.commit({"w": np.full(3, 2.0 + 4 * number, np.float32)}, name)
        repo.tag(name)
    return repo


VCJAX = ("-m", "vcjax.cli", "--repo=repo")


def test_a_method_of_a_package_is_listed_found_recorded_and_run_again(
    tmp_path: Path, run: Any, merged: Any
) -> None:
    install(tmp_path / "site", "pkg", "halve = pkg:halve")
    script = """
        import json, sys
        from vcjax import merging
        method = merging.from_config("halve", {"factor": 0.25})
        sweep = merging.sweep(method, {"factor": [0.5, 1.0]}, lambda t: t["w"], [{"w": 2.0}])
        merged = merging.merge([{"w": 2.0}, {"w": 6.0}], method)["w"].item()
        from pkg import other
        config = merging.to_config(other(0.5))
        again = merging.from_config(**config)
        print(json.dumps([merging.methods(), merging.to_config(method), merged, config,
                          sweep.values.tolist(), merging.to_config(again) == config]))
    """
    found, _ = run("-c", textwrap.dedent(script))
    names, config, value, other, swept, same = json.loads(found)
    assert names == sorted([*merging.methods(), "halve"])
    assert config == {"name": "halve", "parameters": {"factor": 0.25, "times": 1}}
    assert (value, other["name"], swept, same) == (1.0, "pkg:other", [1.0, 2.0], True)
    # The command line in two more processes: one merges, one merges again.
    words = ("merge", "--whole", "one", "two")
    run(*VCJAX, *words, "--method=halve(factor=0.5, times=2)")
    np.testing.assert_array_equal(vcjax.Repository.open(merged.url).restore()["w"], np.full(3, 1.0))
    run(*VCJAX, "merge", "--rerun", "HEAD")
    # Without the package it cannot be done, and that is said.
    (tmp_path / "site" / "pkg-1.0.dist-info" / "entry_points.txt").unlink()
    _, problems = run(*VCJAX, "merge", "--rerun", "HEAD", code=1)
    assert "no merge method 'halve'" in problems


BROKEN = """
lost = lost_module:make
number = pkg:NUMBER
nonsense = pkg:nonsense
ties = pkg:halve
half-way = pkg:halve
loose = pkg:loose
works = pkg:halve
"""

MESSAGES = {
    "lost": "ModuleNotFoundError: No module named 'lost_module'",
    "number": "int is no function that makes a merge method",
    "nonsense": "nonsense makes int, and not a MergeMethod",
    "half-way": "its name is no identifier",
    "loose": "*steps have no names",
}


def test_broken_plug_ins_are_named_and_break_nothing_else(tmp_path: Path, run: Any) -> None:
    loose = "\n\ndef loose(*steps):\n    return merging.chain(*steps)\n\nNUMBER = 42\n"
    install(tmp_path / "site", "pkg", BROKEN, MODULE + loose)
    install(tmp_path / "site", "zweite", "works = zweite:other")
    script = """
        import json
        import vcjax
        from vcjax import merging
        found = {}
        for name in ("lost", "number", "nonsense", "half-way", "loose"):
            try:
                merging.from_config(name)
            except vcjax.VcjaxError as error:
                found[name] = [error.message, error.hint]
        config = merging.to_config(merging.from_config("works"))
        ties = merging.to_config(merging.from_config("ties"))
        print(json.dumps([found, merging.methods(), config, ties]))
    """
    result, problems = run("-c", textwrap.dedent(script))
    found, names, config, ties = json.loads(result)
    for name, (message, hint) in found.items():
        assert MESSAGES[name] in message
        assert name in message
        assert hint
    assert found.keys() == MESSAGES.keys()
    assert names == sorted([*merging.methods(), "nonsense", "works"])
    assert config == {"name": "works", "parameters": {"factor": 0.5, "times": 1}}  # pkg's
    assert ties["parameters"]["density"] == 0.2  # vcjax's own
    for words in ("pkg:halve has this name already", "vcjax has a method or step of this name"):
        assert words in problems
