"""`vcjax show REV:PATH`: a plain value, or an array in figures and a corner."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import Repository
from vcjax.cli import main
from vcjax.report.leaf_excerpt import RUN, array_figures

LARGE = np.arange(10_000, dtype=np.float32).reshape(100, 100)
TREE = {
    "opt": "adam",
    "lr": 0.125,
    "raw": b"\x00\xff",
    "text": "two\nlines",
    "step": np.int32(91),
    "params": {"w": LARGE, "half": jnp.full((3, 3, 20), 0.5, jnp.bfloat16), "flags": np.eye(4) > 0},
    "odd:name": 1,
    "bad": np.array([np.nan, np.inf, -1, 0] * 3, np.float32),
    "z": np.full(9, 3 + 4j),
    "empty": np.zeros((0, 9)),
    "key": jax.random.key(0),
}


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.setenv("VCJAX_REPO", str(tmp_path))
    made = Repository.init(tmp_path)
    made.commit(TREE, "one", metadata={"step": 7}, metrics={"loss": 1.0})
    return made


@pytest.fixture
def shown(repo, capfdbinary):
    def run(*words, code=0):
        capfdbinary.readouterr()
        assert main(["show", *words]) == code
        return capfdbinary.readouterr()

    return lambda *words, **options: run(*words, **options).out.decode()


@pytest.mark.parametrize(
    ("path", "text"),
    {"opt": "adam", "lr": "0.125", "text": "two\nlines", "raw": "b'\\x00\\xff'"}.items(),
)
def test_a_plain_value_is_printed_as_it_is(shown, path, text):
    assert shown(f"HEAD:{path}") == f"{text}\n"


@pytest.mark.parametrize("revision", ["", "HEAD", "main", "step:7", "best:loss"])
def test_any_revision_may_stand_before_the_path(shown, revision):
    assert shown(f"{revision}:opt") == "adam\n"
    assert shown(f"{revision}:odd:name") == "1\n"


def test_an_array_is_shown_in_figures_and_a_corner(shown):
    lines = shown("HEAD:params/w").splitlines()
    assert lines[0] == "params/w  float32[100,100]  40.0 kB"
    assert lines[1].startswith("norm 5.7731e+05, min 0, max 9999, mean 4999.5, std 2886.8, zeros 1")
    assert lines[2] == "the corner [:4, :6]:"
    assert lines[3].split() == ["0", "1", "2", "3", "4", "5"]
    assert lines[6].split()[0] == "300"
    assert len(lines) == 7


def test_small_arrays_are_shown_themselves(shown):
    assert shown("HEAD:step").splitlines()[-1] == "91"
    assert "the corner [0, :3, :6]:" in shown("HEAD:params/half")
    assert shown("HEAD:params/flags").splitlines()[3].split() == ["True", *["False"] * 3]


def test_what_is_not_finite_is_counted_and_left_out(shown):
    line = shown("HEAD:bad").splitlines()[1]
    assert line == "norm 1.7321, min -1, max 0, mean -0.5, std 0.5, zeros 3, nan 3, inf 3"
    assert "3+4j" in shown("HEAD:z")
    assert "zeros 0" in shown("HEAD:empty")


def test_words_of_keys_are_not_figures(shown):
    assert len(shown("HEAD:key").splitlines()) == 1


def test_json(shown, repo):
    found = json.loads(shown("HEAD:params/w", "--json"))
    assert found["format"] == "vcjax.leaf.1"
    assert found["commit"] == repo.resolve("HEAD").digest
    assert (found["path"], found["dtype"], found["shape"]) == ("params/w", "float32", [100, 100])
    assert (found["nbytes"], found["stats"]["max"]) == (40_000, 9999)
    assert found["corner"][1] == [100, 101, 102, 103, 104, 105]
    assert "value" not in found
    plain = json.loads(shown("HEAD:opt", "--json"))
    assert plain["value"] == "adam"
    assert "stats" not in plain
    assert json.loads(shown("HEAD:bad", "--json"))["corner"][0] == "NaN"


def test_raw_is_the_value_alone(repo, capfdbinary):
    for path, data in {
        "opt": b"adam",
        "raw": b"\x00\xff",
        "lr": b"0.125",
        "params/w": LARGE.tobytes(),
        "step": np.int32(91).tobytes(),
    }.items():
        assert main(["show", "--raw", f"HEAD:{path}"]) == 0
        assert capfdbinary.readouterr().out == data


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["HEAD:params"], 1, "'params' is no leaf, there are leaves below it"),
        (["HEAD:nothing"], 1, "'nothing' is no leaf of"),
        (["nothing:opt"], 1, "no commit is called 'nothing:opt'"),
        (["--raw"], 2, "--raw is of a leaf"),
        (["--raw", "--json", "HEAD:opt"], 2, "leave one out"),
    ],
)
def test_what_cannot_be_shown_is_said(repo, capsys, words, code, message):
    assert main(["show", *words]) == code
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_of_a_pruned_commit_what_the_manifest_holds(repo, shown):
    repo.commit({"w": np.zeros(3)}, "two")
    repo.prune(["HEAD~1"], "max_to_keep=1")
    assert shown("HEAD~1:opt") == "adam\n"
    assert shown("HEAD~1:step").splitlines()[-1] == "91"
    shown("HEAD~1:params/w", code=1)


def test_figures_of_runs_are_those_of_the_whole():
    array = np.random.default_rng(0).normal(3, 2, RUN + 1000)
    found = array_figures(array)
    assert found["mean"] == pytest.approx(array.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(array.std(), rel=1e-12)
    assert found["norm"] == pytest.approx(np.linalg.norm(array), rel=1e-12)
    assert (found["min"], found["max"]) == (array.min(), array.max())
