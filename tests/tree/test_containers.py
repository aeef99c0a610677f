"""Containers and leaf paths: kinds, keys, round trips, the agreement with JAX."""

import collections
import dataclasses
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from vcjax import errors, tree

from .roots import node_of


class Point(NamedTuple):
    x: object
    y: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    first: object
    second: object
    name: str = dataclasses.field(default="static", metadata={"static": True})


class Unkeyed:
    def __init__(self, *parts):
        self.parts = parts


jax.tree_util.register_pytree_node(Unkeyed, lambda u: (u.parts, None), lambda _, p: Unkeyed(*p))


def paths(value: object) -> list[str]:
    return list(tree.leaf_dict(tree.flatten(value)))


def assert_same(a: object, b: object) -> None:
    """Same structure, types, dtypes and bytes."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


CONTAINERS = {
    "dict": {"b": 1, "a": 2},
    "int keys": {10: 1, 9: 2, True: 3},
    "float keys": {0.5: 1, 2: 2},
    "bytes keys": {b"a": 1, b"/": 2},
    "tuple keys": {("a", 1): 1, ("a", 0): {(): 3}},
    "odd keys": {"": {"": 1, "/": 2, "%": 3, "%2F": 4, "//": 5}, "a/b": 6},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "frozen": FrozenDict({"a": {"b": 1}, "c": [2, FrozenDict({"d": 3})]}),
    "list": [1, [2, []], ()],
    "tuple": (1, (2,), [3]),
    "none": {"a": None, "b": [None, 1]},
    "namedtuple": Point(1, Point({"a": 2}, None)),
    "empty": {},
    "leaf": 3,
    "only none": None,
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_come_back_as_they_were(kind):
    value = CONTAINERS[kind]
    back = tree.unflatten(tree.flatten(value))
    assert_same(back, value)
    assert type(back) is type(value)
    assert_same(tree.unflatten_like(tree.flatten(value), value), value)


def test_the_order_of_an_ordered_dict_is_kept_and_that_of_a_dict_is_not():
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    assert list(tree.unflatten(tree.flatten(ordered))) == ["b", "a"]
    assert node_of({"b": 1, "a": 2}).keys == ("a", "b")


def test_a_defaultdict_comes_back_without_its_factory():
    value = collections.defaultdict(list, {"b": 1, "a": 2})
    root = node_of(value)
    assert root.kind == "defaultdict"
    back = tree.unflatten(root)
    assert type(back) is collections.defaultdict
    assert back.default_factory is None
    assert back == value
    assert tree.unflatten_like(root, value).default_factory is list


def test_odd_keys_are_escaped_and_unescaped():
    keys = ["", "/", "%", "%2F", "%252F", "a/b%c"]
    assert [tree.unescape(tree.escape(key)) for key in keys] == keys
    assert paths({"a/b": {"%": 1}, "": 2}) == ["", "a%2Fb/%25"]


@pytest.mark.parametrize(
    "key", [None, np.int64(1), np.str_("a"), float("nan"), frozenset(), ("a", None), 1j]
)
def test_unsupported_keys_are_refused_by_path(key):
    with pytest.raises(errors.TreeError, match="outer/0") as caught:
        tree.flatten({"outer": [{key: 1}]})
    assert caught.value.hint


@pytest.mark.parametrize("keys", [("a", 1), (1, (1,)), (b"a", "a")])
def test_keys_that_cannot_be_sorted_are_refused_by_path(keys):
    with pytest.raises(errors.TreeError, match="'outer' cannot be sorted"):
        tree.flatten({"outer": dict.fromkeys(keys, 1)})


def test_equal_paths_are_refused():
    with pytest.raises(errors.TreeError, match="two leaves have the path 'a/1'"):
        tree.flatten({"a": collections.OrderedDict([("1", 0), (1, 0)])})


def test_subclasses_that_jax_does_not_know_are_leaves_and_refused():
    with pytest.raises(errors.UnsupportedLeafError, match="Counter"):
        tree.flatten({"a": collections.Counter("aab")})


def test_custom_nodes_become_dicts_of_their_fields_and_themselves_again_with_like():
    value = {"p": Pair(1, [2]), "u": Unkeyed(3, 4)}
    root = node_of(value)
    pair = root.children[0]
    assert isinstance(pair, tree.Node)
    assert paths(value) == ["p/first", "p/second/0", "u/0", "u/1"]
    assert pair.kind == "custom"
    assert pair.name == f"{__name__}:Pair"
    assert tree.unflatten(root) == {"p": {"first": 1, "second": [2]}, "u": {0: 3, 1: 4}}
    back = tree.unflatten_like(root, value)
    assert back["p"] == value["p"]
    assert back["u"].parts == (3, 4)


def test_a_namedtuple_registered_as_something_else_is_custom():
    class Odd(NamedTuple):
        a: object
        b: object

    jax.tree_util.register_pytree_node(Odd, lambda o: ((o.a,), o.b), lambda b, c: Odd(c[0], b))
    root = node_of(Odd(1, len))
    assert root.kind == "custom"
    assert tree.unflatten_like(root, Odd(0, len)) == Odd(1, len)


def test_an_unknown_namedtuple_is_made_anew_and_only_once():
    root = tree.Node("namedtuple", ("a", "class", "a b"), (1, 2, 3), "no.such.module:Outer.State")
    root = tree.map_leaves(lambda _, x: tree.make_leaf(x), root)
    one, two = tree.unflatten(root), tree.unflatten(root)
    assert type(one) is type(two)
    assert type(one).__name__ == "State"
    assert one == (1, 2, 3)
    assert one._fields == ("a", "_1", "_2")
    assert "no.such.module" not in sys.modules


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:tuple", f"{__name__}:Pair", "", ":", "a:b.<locals>.1", "x:class"],
)
def test_a_namedtuple_name_cannot_reach_anything_else(name):
    root = tree.Node("namedtuple", ("x", "y"), (tree.make_leaf(1), tree.make_leaf(2)), name)
    back = tree.unflatten(root)
    assert back == (1, 2)
    assert back._fields == ("x", "y")


def test_reading_imports_nothing_and_runs_no_constructor(processes):
    code = """
import sys
from vcjax import tree
def named(name):
    return tree.unflatten(tree.Node("namedtuple", ("a",), (tree.make_leaf(1),), name))
named("antigravity:State"); named("this:Zen"); named("wsgiref.simple_server:Node")
assert not {"antigravity", "this", "wsgiref.simple_server"} & set(sys.modules)
class Loud(__import__("typing").NamedTuple):
    a: int
def shout(cls, *args):
    raise RuntimeError
Loud.__new__ = shout
assert type(named("__main__:Loud")) is Loud
"""
    processes.python(code).finish()


def test_an_unknown_node_kind_is_refused():
    with pytest.raises(errors.UnknownFormatError, match="bag"):
        tree.unflatten(tree.Node("bag"))


def test_public_names_are_not_hidden_by_modules(processes):
    import vcjax.tree

    code = "from vcjax import tree; tree.template; assert callable(tree.flatten)"
    processes.python(code).finish()
    for name in vcjax.tree.__all__:
        assert f"vcjax.tree.{name}" not in sys.modules


def test_reading_specs_and_dtypes_needs_no_jax(processes):
    code = (
        "import sys; from vcjax import tree; tree.Node; tree.storage_dtype('int4');"
        "assert not {'jax', 'flax'} & set(sys.modules)"
    )
    processes.python(code).finish()


def arrays() -> st.SearchStrategy:
    dtypes = st.sampled_from(["float32", "int8", "bool", "complex64", "bfloat16"])
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    return st.builds(lambda d, s: jnp.ones(s, d) if len(s) % 2 else np.ones(s, d), dtypes, shapes)


LEAVES = st.one_of(
    arrays(), st.integers(), st.floats(), st.booleans(), st.text(), st.binary(), st.none()
)
TEXT_KEYS = st.text(max_size=4)
PLAIN_KEYS = TEXT_KEYS.filter(lambda key: "/" not in key and "%" not in key)


def trees(keys: st.SearchStrategy) -> st.SearchStrategy:
    def extend(inner: st.SearchStrategy) -> st.SearchStrategy:
        mapping = st.dictionaries(keys, inner, max_size=3)
        return st.one_of(
            mapping,
            st.dictionaries(st.integers() | st.floats(allow_nan=False), inner, max_size=3),
            st.dictionaries(st.tuples(keys, st.integers()), inner, max_size=2),
            st.lists(st.tuples(keys, inner), max_size=3).map(collections.OrderedDict),
            mapping.map(FrozenDict),
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.builds(Point, inner, inner),
        )

    return st.recursive(LEAVES, extend, max_leaves=12)


@given(trees(TEXT_KEYS))
@settings(max_examples=150, deadline=None)
def test_any_nested_tree_comes_back(value):
    root = tree.flatten(value)
    assert_same(tree.unflatten(root), value)
    assert_same(tree.unflatten_like(root, value), value)
    assert tree.map_leaves(lambda p, leaf: leaf, root) == root


@given(trees(PLAIN_KEYS))
@settings(max_examples=150, deadline=None)
def test_leaf_paths_are_those_of_jax(value):
    found = paths(value)
    expected = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(value)
    ]
    assert found == expected
