"""The pages about using vcjax say what is so: their Python and shell blocks run, in order."""

import operator
import re
import shlex
from pathlib import Path

import pytest

import vcjax
from vcjax import merging
from vcjax.cli import command_table as registry
from vcjax.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/getting-started.md",
    "docs/for-git-users.md",
    "docs/merging.md",
    "docs/diff.md",
    "docs/guides/migrating-from-orbax.md",
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("VCJAX_REPO", "VCJAX_AUTHOR"):
        monkeypatch.delenv(name, raising=False)
    names: dict[str, object] = {"__name__": page}
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert any(language == "python" for language, _ in blocks)
    for language, text in blocks:
        if language == "python":
            exec(compile(text, page, "exec"), names)
        elif language == "sh":
            for words in map(shlex.split, text.splitlines()):
                if words[0] == "vcjax":
                    capsys.readouterr()
                    assert main(words[1:]) == 0, f"{words}: {capsys.readouterr().err}"


def test_the_table_for_git_users_has_every_command_that_git_has():
    page = (ROOT / "docs/for-git-users.md").read_text()
    told = set(re.findall(r"`vcjax (\w+)", page))
    assert told <= set(registry.names())
    assert set(registry.names()) - told == {"doctor", "demo", "help"}


def test_the_table_of_methods_is_complete_and_its_defaults_are_true():
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \|", _section("## The methods"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == merging.methods()
    for name, parameters in rows:
        defaults = merging.from_config(name).parameters
        told = re.findall(r"`(\w+)`[^(,]*\(([^)]*)\)", parameters)
        assert [key for key, _ in told] == list(defaults), name
        for key, text in told:
            value = defaults[key]
            expected = value if isinstance(value, str) else str(value)
            assert text.strip('"') == expected or float(text) == value, (name, key)


def _section(heading: str) -> str:
    text = (ROOT / "docs/merging.md").read_text()
    return text.partition(heading)[2].partition("\n## ")[0]


def test_the_library_calls_named_for_git_users_exist():
    page = (ROOT / "docs/for-git-users.md").read_text()
    calls = set(re.findall(r"`(?:repo|Repository)\.([\w.]+)", page))
    assert len(calls) > 10
    repo = vcjax.Repository.init("memory://named-for-git-users")
    for call in calls:
        operator.attrgetter(call)(repo)
