"""docs/cli.md is complete: every command, every flag, every document that --json prints."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vcjax import formats
from vcjax.cli import command_table as registry
from vcjax.cli import main
from vcjax.cli.command import common_help, spelling, unique

DOCS = Path(__file__).parents[2] / "docs/cli.md"


def section(name):
    """The text about a command."""
    found = re.search(rf"^### vcjax {name}\n(.*?)(?=^##|\Z)", DOCS.read_text(), re.M | re.S)
    assert found, f"docs/cli.md has no section on {name}"
    return found.group(1)


@pytest.mark.parametrize("name", registry.names())
def test_every_command_is_documented(name):
    """If this fails, put the output of `vcjax NAME --help` into docs/cli.md."""
    command = registry.load(name)
    text = section(name)
    assert f"```text\n{command.help(common=False)}\n```" in text
    for flag in unique(command.flag_values()):
        assert spelling(flag) in DOCS.read_text()


def test_the_flags_of_all_commands_are_documented():
    assert common_help() in DOCS.read_text()


@pytest.mark.parametrize("name", registry.names())
def test_every_command_has_proper_help(name):
    command = registry.load(name)
    assert command.name == name
    assert command.summary
    assert not command.summary.endswith(".")
    assert all(flag.help for flag in unique(command.flag_values()))
    assert all(len(line) <= 90 for line in command.help().splitlines())


def test_every_module_that_has_a_command_is_registered():
    folder = Path(registry.__file__).parent / "commands"
    found = {path.stem for path in folder.glob("*.py") if "\nCOMMAND = " in path.read_text()}
    assert {name.rstrip("_") for name in found} == set(registry.names())


REPORTS = {
    "init": ("init", ["init", "again"]),
    "commit": ("commit", ["commit", "two.npz", "--step=2", "--metric=loss=1"]),
    "checkout": ("checkout", ["checkout", "HEAD", "out.npz"]),
    "log": ("log", ["log"]),
    "reflog": ("log", ["log", "--reflog"]),
    "show": ("show", ["show"]),
    "leaf": ("show", ["show", "HEAD:w"]),
    "ls": ("ls", ["ls"]),
    "diff": ("diff", ["diff"]),
    "similarity": ("similarity", ["similarity", "v1", "side", "--base=HEAD~1"]),
    "blame": ("blame", ["blame"]),
    "plot": ("plot", ["plot"]),
    "import": ("import", ["import", "orbax", "saved"]),
    "export": ("export", ["export", "orbax", "HEAD", "saved"]),
    "branches": ("branch", ["branch"]),
    "branch": ("branch", ["branch", "third"]),
    "tags": ("tag", ["tag"]),
    "tag": ("tag", ["tag", "v2"]),
    "switch": ("switch", ["switch", "side"]),
    "merge": ("merge", ["merge", "side", "--resolve=ours"]),
    "merge_files": ("merge", ["merge", "HEAD", "three.npz", "--output=merged"]),
    "merge_rerun": ("merge", ["merge", "--rerun=HEAD"]),
    "status": ("status", ["status"]),
    "merge_plan": ("merge", ["merge", "side", "--dry_run"]),
    "undo": ("undo", ["undo"]),
    "fsck": ("fsck", ["fsck"]),
    "gc": ("gc", ["gc"]),
    "upgrade": ("upgrade", ["upgrade"]),
    "stats": ("stats", ["stats"]),
    "doctor": ("doctor", ["doctor"]),
}


def outline(value, free=("metadata", "metrics", "provenance", "decisions", "settled", "counts")):
    """The keys of a document, all levels down; what has keys of its own choice counts as one."""
    if isinstance(value, dict):
        return {key: None if key in free else outline(child) for key, child in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [outline(value[0])]
    return None


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VCJAX_REPO", raising=False)
    for name, value in {"one": 1, "two": 2, "three": 3}.items():
        formats.write(f"{name}.npz", {"w": np.full(4, value, np.float32), "b": np.zeros(2)})
    for words in ("init", "commit one.npz", "branch side", "commit two.npz", "tag v1"):
        assert main(words.split()) == 0
    assert main(["commit", "three.npz", "--branch=side"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("kind", REPORTS)
def test_documents_are_as_documented(kind, project, capsys):
    name, words = REPORTS[kind]
    if kind == "import":
        assert main(["export", "orbax", "HEAD", "saved"]) == 0
        capsys.readouterr()
    if kind in ("merge_rerun", "status"):
        settled = ["--resolve=ours"] if kind == "merge_rerun" else []
        assert main(["merge", "side", *settled]) == (not settled)
        capsys.readouterr()
    main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == f"vcjax.{kind}.1"
    blocks = map(json.loads, re.findall(r"```json\n(.*?)```", section(name), re.S))
    examples = [block for block in blocks if block["format"] == document["format"]]
    assert examples
    shown, printed = outline(examples[0]), outline(document)
    if kind == "merge":
        assert isinstance(shown, dict)
        assert isinstance(printed, dict)
        shown["commit"] = printed["commit"]  # "as in `vcjax log --json`"
    assert shown == printed


def test_every_command_that_reports_is_in_the_table():
    reporting = {name for name in registry.names() if registry.load(name).reports}
    reporting -= {"demo"}  # takes long: tests/cli/test_demo.py looks at its document
    assert {name for name, _ in REPORTS.values()} == reporting
