"""Small values in diffs: old and new, in every form."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import vcjax
from vcjax import Repository
from vcjax.cli import main
from vcjax.diffing import compare, value_document, value_text
from vcjax.diffing.small_values import TEXT_WIDTH, transition_texts

OLD = {
    "lr": 0.25,
    "opt": "adam",
    "step": np.int32(46913),
    "betas": np.array([0.9, 0.1], np.float32),
    "half": jnp.ones((2, 2), jnp.bfloat16),
    "gone": True,
    "kind": 1 + 2j,
    "large": np.zeros(9),
}
NEW = {
    "lr": 0.125,
    "opt": "sgd",
    "step": np.int32(71039),
    "betas": np.array([0.9, 0.2], np.float32),
    "half": jnp.zeros((2, 2), jnp.bfloat16),
    "come": b"\x01",
    "kind": 3,
    "large": np.ones(9),
}
SHOWN = (
    "float 0.25 → 0.125",
    "str adam → sgd",
    "int32[] 46913 → 71039",
    "float32[2] [0.9, 0.1] → [0.9, 0.2]",
    "bfloat16[2,2] [[1, 1], [1, 1]] → [[0, 0], [0, 0]]",
    "bool True",
    "bytes b'\\x01'",
    "complex (1+2j) → int 3",
    "float64[9]",
)


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Repository.init(tmp_path / ".vcjax")
    made.commit(OLD, "old")
    made.commit(NEW, "new")
    return made


@pytest.fixture(params=["commits", "memory", "without figures"])
def diff(request, repo):
    if request.param == "memory":
        return vcjax.diff(OLD, NEW)
    return repo.diff("HEAD~1", "HEAD", stats=request.param == "commits")


def test_python_has_the_values_themselves(diff):
    found = {change.path: (change.old_value, change.new_value) for change in diff.changes}
    assert found["lr"] == (0.25, 0.125)
    assert found["opt"] == ("adam", "sgd")
    assert found["gone"] == (True, None)
    assert found["come"] == (None, b"\x01")
    assert found["large"] == (None, None)
    assert found["step"][1].dtype == np.int32
    assert found["step"][1].shape == ()
    np.testing.assert_array_equal(found["betas"][1], np.array([0.9, 0.2], np.float32))


def test_text_shows_them(diff):
    described = {change.describe() for change in diff.changes}
    assert set(SHOWN) <= described
    assert all(words in str(diff) for words in SHOWN)


def test_json_has_them(diff):
    changes = {c["path"]: c for c in json.loads(json.dumps(diff.to_dict()))["changes"]}
    assert (changes["opt"]["old_value"], changes["opt"]["new_value"]) == ("adam", "sgd")
    assert (changes["step"]["old_value"], changes["step"]["new_value"]) == (46913, 71039)
    assert changes["half"]["old_value"] == [[1, 1], [1, 1]]
    assert (changes["kind"]["old_value"], changes["kind"]["new_value"]) == ([1, 2], 3)
    assert changes["come"]["new_value"] == "01"
    assert changes["large"]["new_value"] is None


def test_markdown_html_and_notebooks_show_them(diff, tmp_path):
    diff.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    for shown in (diff.to_markdown(), diff._repr_html_(), page):
        assert "adam → sgd" in shown
        assert "46913 → 71039" in shown
        assert "0.25 → 0.125" in shown


@pytest.mark.parametrize("flag", ["--full", "--json", "--markdown", "--no-stats"])
def test_every_form_of_the_command_shows_them(repo, capsys, flag):
    assert main(["diff", flag]) == 0
    shown = capsys.readouterr().out
    for value in ("adam", "sgd", "46913", "71039", "0.125"):
        assert value in shown


def test_three_way_diffs_show_what_each_side_made_of_a_value(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    repo = Repository.init(tmp_path / ".vcjax")
    repo.commit({"step": 91, "opt": "adam"}, "base")
    repo.branch("side")
    repo.commit({"step": 101, "opt": "adam"}, "ours")
    repo.commit({"step": 95, "opt": "sgd"}, "theirs", branch="side")
    assert main(["diff", "main", "side", "--base=HEAD~1"]) == 0
    shown = capsys.readouterr().out
    assert "changed 91 → 101" in shown
    assert "changed 91 → 95" in shown
    assert "changed adam → sgd" in shown
    markdown = repo.diff("main", "side", base="HEAD~1").to_markdown()
    assert "changed 91 → 101" in markdown


def test_unchanged_leaves_have_no_values():
    change = vcjax.diff({"a": 1}, {"a": 1}).changes[0]
    assert (change.old_value, change.new_value) == (None, None)


def test_keys_are_not_shown():
    import jax

    diff = vcjax.diff({"key": jax.random.key(0)}, {"key": jax.random.key(1)})
    assert diff.changes[0].new_value is None
    assert "→" not in diff.changes[0].describe()


def test_manifests_alone_are_enough(repo):
    """Of pruned commits the small values are still known."""
    old, new = repo.manifest("HEAD~1").root, repo.manifest("HEAD").root
    values = {change.path: change.new_value for change in compare(old, new).changes}
    assert values["opt"] == "sgd"


def test_long_text_is_shown_where_it_differs():
    before, after = transition_texts("x" * 500 + "a" + "y" * 500, "x" * 500 + "b" + "y" * 500)
    assert "a" in before
    assert "b" in after
    assert max(len(before), len(after)) <= TEXT_WIDTH + 2


@pytest.mark.parametrize(
    ("value", "text"),
    [("", "''"), (" a", "' a'"), ("a\nb", r"'a\nb'"), (np.zeros((0, 2)), "[]"), (None, "None")],
)
def test_text_that_would_mislead_is_quoted(value, text):
    assert value_text(value) == text


def test_numbers_that_json_lacks_and_those_of_machine_learning():
    assert value_document(np.array([1j], np.complex64)) == [[0.0, 1.0]]
    assert value_document(jnp.array([0.5], jnp.float8_e4m3fn).__array__()) == [0.5]
