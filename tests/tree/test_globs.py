"""Globs in linear time: the automaton gives what regular expressions give, and never backtracks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vcjax
from vcjax import errors
from vcjax.tree import globs
from vcjax.tree.automaton import Automaton

PARTS = ["a", "b", "/", "*", "**", "**/", "/**", "?", "[ab]", "[!a]", "[b-a]"]


def tokens(glob):
    return globs.Glob(glob)._tokens


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PARTS), max_size=7).map("".join), st.text("ab/", max_size=9))
def test_the_automaton_and_the_regular_expression_agree(glob, path):
    expected = globs.Glob(glob)._regular.match(path) is not None
    assert Automaton(tokens(glob)).match(path) == expected


@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("*a" * 25, "a" * 3000 + "b"),
        ("**a" * 25, "a" * 3000 + "b"),
        ("**/" * 25 + "x", "a/" * 3000),
        ("*[ab]?" * 25, "a" * 3000 + "/"),
        ("*" * 3000 + "b", "a" * 3000),
        ("*a" * 20_000, "b" * 3000),
    ],
    ids=["within", "across", "above", "classes", "stars", "long"],
)
def test_no_glob_takes_for_ever(glob, path):
    """With backtracking none of these would ever end."""
    assert not globs.matches(glob, path)
    assert not globs.FirstMatch([(glob, True)]).find(path)
    assert globs.unmatched([glob], [path]) == [glob]


def test_names_that_a_repository_brings_take_no_longer():
    repo = vcjax.Repository.init("memory://many-stars")
    repo.commit({"a" * 3000 + "b": 1, "w": 2}, "x")
    with pytest.raises(errors.TreeError, match="no leaf path matches"):
        repo.restore(paths=["*a" * 25])
    assert not list(repo.log(paths=["*a" * 25]))
