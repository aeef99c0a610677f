"""Diffs of checkpoint files, and of files with commits, hold little and change nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

import vcjax
from vcjax import formats
from vcjax.cli import main
from vcjax.cli.file_content import open_file, release
from vcjax.diffing import examine

from .figures import figures

RNG = np.random.default_rng(0)


@pytest.fixture
def models():
    old = {f"w{i}": RNG.standard_normal((700, 1000)).astype(np.float32) for i in range(12)}
    return old, {name: leaf * np.float32(1.5) for name, leaf in old.items()} | {"w0": old["w0"]}


def resident():
    """Bytes of files and memory that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_files_are_compared_as_their_trees_are(models, tmp_path, suffix):
    for name, model in zip("ab", models, strict=True):
        formats.write(tmp_path / f"{name}.{suffix}", model)
    old, new = (open_file(tmp_path / f"{name}.{suffix}") for name in "ab")
    assert examine(old, new) == vcjax.diff(*models)
    again = formats.read(tmp_path / f"a.{suffix}").tree
    assert all(np.array_equal(again[name], leaf) for name, leaf in models[0].items())


def test_pages_of_a_mapped_file_are_given_back(models, tmp_path):
    """It is 34 MB; a leaf 2.8."""
    formats.write(tmp_path / "a.safetensors", models[0])
    arrays = formats.read(tmp_path / "a.safetensors").tree
    before = resident()
    total = sum(float(leaf.sum()) for leaf in arrays.values())
    grown = resident() - before
    for leaf in arrays.values():
        release(leaf)
    assert grown > 25e6
    assert resident() - before < grown - 25e6
    assert sum(float(leaf.sum()) for leaf in arrays.values()) == total


def test_releasing_loses_nothing_that_was_written(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes(1 << 20))
    private = np.memmap(file, np.uint8, "c")
    private[:] = 7
    release(private)
    assert private.min() == 7


def test_a_file_and_a_commit(models, tmp_path, capsys):
    repo = vcjax.Repository.init(tmp_path / "repo")
    repo.commit(models[0])
    formats.write(tmp_path / "b.safetensors", models[1])
    words = ["diff", f"--repo={tmp_path}/repo", "HEAD", f"{tmp_path}/b.safetensors", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["changed"] == 11
    expected = figures(vcjax.diff(*models).changes[1])
    assert document["changes"][0]["stats"]["l2"] == expected["l2"]
