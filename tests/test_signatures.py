"""How much of the signatures of a package says nothing: parameters that are `Any`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vcjax

PACKAGE = Path(vcjax.__file__).parent

LIMITS = {
    "diffing": 12.0,
    "hashing": 5.7,
    "orbax": 15.5,
}
"""{package: the largest share of its annotated parameters that `Any` occurs in, per cent}."""


def names(annotation: ast.expr) -> Iterator[str]:
    """The names in an annotation, also where it is written as text."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                yield from names(ast.parse(node.value, mode="eval").body)
            except SyntaxError:  # a shape, such as "rows columns"
                continue


def anything(module: ast.Module) -> set[str]:
    """`Any`, and the names that a module gives to types with `Any` in them."""
    found = {"Any"}
    for node in module.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        is_alias = isinstance(value, ast.Name | ast.Attribute | ast.Subscript | ast.BinOp)
        if isinstance(target, ast.Name) and is_alias and found & set(names(value)):
            found.add(target.id)
    return found


def annotations(module: ast.Module) -> Iterator[ast.expr]:
    """The annotations of the parameters of all functions."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            parameters += filter(None, (given.vararg, given.kwarg))
            yield from (one.annotation for one in parameters if one.annotation is not None)


def share(sources: list[str]) -> float:
    """The share of annotated parameters that `Any` occurs in, per cent."""
    verdicts = []
    for source in sources:
        module = ast.parse(source)
        known = anything(module)
        verdicts += [bool(known & set(names(one))) for one in annotations(module)]
    return 100 * sum(verdicts) / len(verdicts)


def test_the_measure_sees_through_aliases_and_text():
    source = """
Alias = dict[str, Any]
Other = Alias | None
def f(self, a: Any, b: Alias, c: "list[Other]", d: int, e: Float[Array, "rows columns"]): ...
"""
    assert share([source]) == 60


@pytest.mark.parametrize("package", sorted(LIMITS))
def test_few_parameters_are_anything(package):
    sources = [path.read_text() for path in sorted((PACKAGE / package).rglob("*.py"))]
    assert share(sources) <= LIMITS[package]
