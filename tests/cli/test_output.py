"""What reaches the terminal: colours, escapes, help; and the JSON that stands for it."""

import json
import math

import numpy as np
import pytest

from vcjax import Repository, report
from vcjax.cli import main


@pytest.fixture
def shown(capsys, monkeypatch, tmp_path):
    """Runs a command line in a folder with one commit of a strange message: its stdout."""
    for name in ("VCJAX_REPO", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.chdir(tmp_path)
    repo = Repository.init(tmp_path / ".vcjax")
    repo.commit(
        {"a\x1b[2J": np.ones(2)}, "red \x1b[31m\u202e text\n\nmore", metrics={"x": math.nan}
    )

    def run(*words):
        assert main(words) == 0
        return capsys.readouterr().out

    return run


def test_control_characters_do_not_reach_the_terminal(shown):
    assert "red \\x1b[31m\\u202e text\n" in shown("log", "--oneline")
    assert "\n    more\n" in shown("log")
    assert "\na\\x1b[2J  float64" in shown("ls")


def test_colours_only_on_a_terminal(shown, monkeypatch):
    assert "\x1b[" not in shown("log", "--oneline")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b[33m" in shown("log", "--oneline")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown("log", "--oneline")


def test_long_lines_are_not_cut(shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert len(shown("log").splitlines()[0]) > 70


def test_help_and_version(shown):
    assert "Record and restore" in shown()
    assert shown("help") == shown() == shown("--help")
    assert shown("help", "commit") == shown("commit", "--help") == shown("commit", "-h")
    assert shown("--version").startswith("vcjax 0.")


def test_documents_are_standard_json(shown):
    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads(shown("log", "--json"), parse_constant=refuse)
    assert document["commits"][0]["metrics"] == {"x": "NaN"}
    assert document["commits"][0]["refs"] == ["refs/heads/main"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_500, "1.00 MB")],
)
def test_sizes(count, text):
    assert report.format_bytes(count) == text


def test_tables_align_and_show_all():
    columns = [report.Column("leaf"), report.Column("size", right=True)]
    lines = report.table(columns, [["a" * 200, "1"], ["b", "100"]])
    assert [report.plain(line) for line in lines] == [
        "leaf" + " " * 198 + "size",
        "a" * 200 + "     1",
        "b" + " " * 202 + "100",
    ]
