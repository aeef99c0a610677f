"""Flattened trees whose root is known: an array or a scalar, or a container."""

from vcjax import tree


def leaf_of(value: object) -> tree.Leaf:
    """The only leaf of what is no container."""
    root = tree.flatten(value)
    assert isinstance(root, tree.Leaf)
    return root


def node_of(value: object) -> tree.Node:
    """The root of a container."""
    root = tree.flatten(value)
    assert isinstance(root, tree.Node)
    return root
