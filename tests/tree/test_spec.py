"""Leaf-path globs and walking `Node` trees: plain Python, no JAX."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcjax import errors
from vcjax.tree import globs, spec

PATHS = ["params/enc/0/kernel", "params/enc/0/bias", "params/encoder/kernel", "step", "a[1]/b"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("params/enc", PATHS[:2]),
        ("step", ["step"]),
        ("**/kernel", [PATHS[0], PATHS[2]]),
        ("params/*/kernel", [PATHS[2]]),
        ("params/**", PATHS[:3]),
        ("params/enc?der/*", [PATHS[2]]),
        ("params/enc/[0-9]/[!k]*", [PATHS[1]]),
        ("params/enc/[^1]/kernel", [PATHS[0]]),
        ("a[[]1]/b", ["a[1]/b"]),
        ("**", PATHS),
        (None, PATHS),
        (["step", "**/bias"], [PATHS[1], "step"]),
    ],
)
def test_globs_select_leaf_paths(glob, expected):
    assert globs.select(PATHS, glob) == expected


def test_a_glob_that_matches_nothing_is_an_error():
    with pytest.raises(errors.TreeError, match=r"'\*\*/bais'"):
        globs.select(PATHS, "**/bais")


@given(st.text("ab-![]&|~\\*?", max_size=8), st.text("ab-!^[]&|~\\", max_size=5))
def test_within_one_segment_globs_mean_what_they_do_in_a_shell(glob, text):
    if "[" not in glob and "*" not in glob and "?" not in glob:
        expected = glob == text
    else:
        expected = fnmatch.fnmatchcase(text, glob)
    assert bool(globs.pattern(glob).match(text)) == expected


@given(st.text())
def test_unescape_undoes_escape(key):
    segment = spec.escape(key)
    assert "/" not in segment
    assert spec.unescape(segment) == key


def test_map_leaves_keeps_everything_but_the_payload():
    root = spec.Node("dict", ("a", "b/c"), (1, spec.Node("namedtuple", ("x",), (2,), "m:T")))
    mapped = spec.map_leaves(lambda path, payload: (path, payload), root)
    assert spec.leaf_dict(mapped) == {"a": ("a", 1), "b%2Fc/x": ("b%2Fc/x", 2)}
    assert mapped.children[1].name == "m:T"
    assert spec.map_leaves(lambda path, payload: path, 1) == ""
