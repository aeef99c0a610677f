"""What users do wrong and what breaks: exit codes and messages, never a traceback."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from vcjax import Repository, formats
from vcjax.cli import command_table as registry
from vcjax.cli import dispatch, main
from vcjax.cli.command import Command


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in ("VCJAX_REPO", "VCJAX_AUTHOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    formats.write("model.npz", {"w": np.arange(20000.0), "b": np.ones(300)})
    formats.write("other.npz", {"w": np.arange(20000.0) + 1, "b": np.ones(300)})
    repo = Repository.init(tmp_path / ".vcjax")
    main(["commit", "model.npz", "-m", "first"])
    return repo


def damage(repo, pattern):
    victim = next(Path(repo.url).glob(pattern))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(data)


def newer_version(repo):
    Path(repo.url, "vcjax.json").write_text('{"format": 99, "settings": {"shards": 4}}')


BAD = {
    "missing file": ("commit nothing.npz", 1, "cannot read 'nothing.npz'", "check the spelling"),
    "unknown suffix": ("commit model.xyz", 1, "no known checkpoint format", "known suffixes"),
    "unknown format": ("commit model.npz --format=npy", 1, "no checkpoint format", "'npz'"),
    "not a checkpoint": ("commit vcjax.npz", 1, "'vcjax.npz' is damaged or not", "copy or dow"),
    "unknown revision": ("show mian", 1, "no commit is called 'mian'", "did you mean main?"),
    "neither revision nor file": ("diff mian main", 1, "'mian'", "did you mean main?"),
    "no such parent": ("log HEAD~3", 1, "has 0 parent(s)", "vcjax log --graph"),
    "no such step": ("checkout step:9 a.npz", 1, "no commit has step 9", "no commit has a step"),
    "no such leaf": ("checkout HEAD a.npz --paths=v", 1, "no leaf path matches 'v'", "vcjax ls"),
    "no such folder": ("checkout HEAD no/a.npz", 1, "cannot write 'no/a.npz'", "has to exist"),
    "bad branch name": ("branch ../../x", 1, "'../../x' is not a valid name", "use letters"),
    "taken branch name": ("branch main", 1, "'main' exists already", "--force"),
    "no such branch": ("switch mian", 1, "there is no branch 'mian'", "did you mean main?"),
    "deleting the current branch": ("branch -d main", 1, "is the current branch", "switch"),
    "no such tag": ("tag -d v1", 1, "there is no tag 'v1'", "there are: none"),
    "no such reflog": ("log --reflog trunk", 1, "no ref is, or was", "vcjax branch"),
    "repository exists": ("init", 1, "there is a repository in", "--repo="),
    "not a repository": ("log --repo=nowhere", 1, "there is no repository in", "vcjax init"),
    "unknown scheme": ("log --repo=ftp://host/x", 1, "unknown scheme 'ftp'", "use a path"),
    "unknown command": ("comit model.npz", 2, "no command 'comit'", "did you mean commit"),
    "unknown flag": ("log --grph", 2, "no flag --grph", "did you mean --graph?"),
    "unknown short flag": ("log -x", 2, "vcjax log has no flag -x", "--help"),
    "a flag of another command": ("show --graph", 2, "vcjax show has no flag --graph", "--help"),
    "bad number": ("log --limit=many", 2, "limit=many", "--help"),
    "negative number": ("gc --grace=-1", 2, "grace=-1", "--help"),
    "missing value": ("log --limit", 2, "limit", "--help"),
    "bad choice": ("merge x --resolve=mine", 2, "resolve=mine", "--help"),
    "too few arguments": ("checkout HEAD", 2, "takes 2 arguments, not 1", "usage: vcjax checkout"),
    "too many arguments": ("undo main", 2, "takes 0 arguments, not 1", "usage: vcjax undo"),
    "metric without a value": ("commit model.npz --metric=loss", 2, "--metric=loss", "NAME=VALUE"),
    "metric that is text": ("commit model.npz --metric=loss=low", 2, "'low' is no n", "--metadata"),
    "reserved metadata": ("commit model.npz --metadata=file=1", 2, "own metadata", "another key"),
    "rule without a side": ("merge main --rule=w=mine", 2, "'mine' is no side", "ours, theirs"),
    "method that is code": ("merge main --method=f(*x)", 2, "every parameter by name", "ties("),
    "method that is no call": ("merge main --method=a.b()", 2, "no merge method", "ties("),
    "method with code in it": ("merge main --method=f(x=1+g())", 2, "malformed", "ties("),
    "method that is nothing": ("merge main --method=(", 2, "--method=(", "ties("),
    "method arguments alone": ("merge main --method_args=k=1", 2, "needs --method", "--method="),
    "unknown method": ("merge main --method=tiess", 1, "no merge method 'tiess'", "ties"),
    "unknown parameter": ("merge main --method=ties(dense=1)", 1, "dense", ""),
    "weights that are words": ("merge main --weights=a,b", 2, "could not convert", "0.7,0.3"),
    "delete without a name": ("branch --delete", 2, "takes one name", "usage: vcjax branch"),
    "create and detach": ("switch x --create --detach", 2, "exclude each other", "leave one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, project, capsys, tmp_path):
    (tmp_path / "vcjax.npz").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "model.xyz").write_bytes(b"what is this")
    words, code, error, hint = BAD[name]
    capsys.readouterr()
    before = project.branches
    assert main(words.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"error: \S", err)
    assert error in err
    assert hint in err.partition("hint: ")[2]
    assert "Traceback" not in err
    assert project.branches == before


BROKEN = {
    "damaged commit": (lambda r: damage(r, "commits/*/*"), "log", "commit ", "fsck"),
    "damaged manifest": (lambda r: damage(r, "manifests/*/*"), "ls", "manifest ", "fsck"),
    "damaged leaf": (lambda r: damage(r, "leaves/*/*/c/*"), "checkout HEAD a.npz", "'w'", "fsck"),
    "damaged ref": (lambda r: damage(r, "refs/heads/main"), "log", "refs/heads/main", "fsck"),
    "damaged HEAD": (
        lambda r: Path(r.url, "HEAD").write_bytes(b"?"),
        "log",
        "HEAD",
        "vcjax switch",
    ),
    "newer format": (newer_version, "log", "has format version 99", "upgrade vcjax"),
    "damaged settings": (lambda r: damage(r, "vcjax.json"), "log", "vcjax.json", "usual content"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_repository(name, project, capsys, tmp_path):
    breaks, words, error, hint = BROKEN[name]
    breaks(project)
    capsys.readouterr()
    assert main(words.split()) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert error in err
    assert hint in err.partition("hint: ")[2]
    assert not (tmp_path / "a.npz").exists()
    assert out == ""


def test_switch_repairs_a_damaged_head(project, capsys):
    damage(project, "HEAD")
    assert main(["switch", "main"]) == 0
    assert main(["log"]) == 0


def test_an_empty_repository(project, capsys, tmp_path):
    main(["init", "empty"])
    capsys.readouterr()
    for words in ("log", "show", "ls", "diff", "log --all", "checkout HEAD a.npz", "tag v1"):
        assert main(["--repo=empty", *words.split()]) == 1
        assert "branch 'main' has no commit yet\nhint: " in capsys.readouterr().err
    for words in ("branch", "fsck", "gc", "stats", "log --reflog", "tag"):
        assert main(["--repo=empty", *words.split()]) == 0
        assert capsys.readouterr().err == ""


def test_errors_as_documents(project, capsys):
    capsys.readouterr()
    assert main(["show", "mian", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "vcjax.error.1"
    assert (document["kind"], document["hint"]) == ("RevisionError", "did you mean main?")


def raising(error):
    def run(session):
        raise error

    return Command(name="log", summary="", usage="", run=run)


def test_a_defect_is_an_error_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(registry, "load", lambda name: raising(ZeroDivisionError("oops")))
    assert main(["log"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected ZeroDivisionError: oops\nhint: ")
    assert "Traceback" not in err
    assert main(["log", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interruption(monkeypatch, capsys):
    monkeypatch.setattr(registry, "load", lambda name: raising(KeyboardInterrupt()))
    assert main(["log"]) == dispatch.INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_error(project, processes):
    reader, writer = os.pipe()
    os.close(reader)
    command = processes.start(sys.executable, "-m", "vcjax.cli", "log", stdout=writer)
    os.close(writer)
    assert command.finish(dispatch.BROKEN_PIPE) == ("", "")
