"""How much of the signatures of some packages says nothing: parameters annotated with `Any`."""

import ast
from pathlib import Path

import pytest

import vcjax

ROOT = Path(vcjax.__file__).parent

LIMITS = [
    ("merging", 16.5),
    ("orbax", 15.5),
    ("tree", 18.0),
    ("diffing", 12.0),
    ("hashing", 9.0),
]
"""Packages, and percent of annotated parameters, but for self and cls, that may mention `Any`."""


def mentions_any(annotation: ast.AST, aliases: set[str]) -> bool:
    """Whether an annotation mentions `Any`, itself or by an alias, also in quotes."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id in aliases:
            return True
        if isinstance(node, ast.Attribute) and node.attr == "Any":
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                quoted = ast.parse(node.value.strip(), mode="eval").body
            except SyntaxError:  # shapes of jaxtyping: "rows columns"
                continue
            if not isinstance(quoted, ast.Constant) and mentions_any(quoted, aliases):
                return True
    return False


def is_any(value: ast.expr | None, aliases: set[str]) -> bool:
    """Whether a type is `Any`, or a union with it, which is the same.

    One that mentions `Any` somewhere inside (`Callable[..., Any]`) says something.
    """
    if isinstance(value, ast.BinOp):
        return is_any(value.left, aliases) or is_any(value.right, aliases)
    named = isinstance(value, ast.Name) and value.id in aliases
    return named or (isinstance(value, ast.Attribute) and value.attr == "Any")


def aliases_of_any(modules: list[ast.Module]) -> set[str]:
    """`Any`, and the names that modules define to mean it."""
    found, before = {"Any"}, 0
    while len(found) > before:
        before = len(found)
        for node in (statement for module in modules for statement in module.body):
            if isinstance(node, ast.Assign | ast.AnnAssign) and is_any(node.value, found):
                names = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {name.id for name in names if isinstance(name, ast.Name)}
    return found


def share_of_any(modules: list[ast.Module]) -> float:
    """Percent of annotated parameters that mention `Any`."""
    aliases, found = aliases_of_any(modules), []
    for node in (node for module in modules for node in ast.walk(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            rest = [given.vararg, given.kwarg]
            for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs, *rest):
                if parameter is None or parameter.annotation is None:
                    continue
                if parameter.arg not in ("self", "cls"):
                    found.append(mentions_any(parameter.annotation, aliases))
    return 100 * sum(found) / len(found)


@pytest.mark.parametrize(("package", "limit"), LIMITS)
def test_signatures_say_what_they_take(package: str, limit: float) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    assert share_of_any([ast.parse(path.read_text()) for path in paths]) <= limit


def test_the_measure_sees_through_aliases_and_quotes() -> None:
    source = """
import typing
from typing import Any
Anything = Any
Thing = Anything
Other = int | typing.Any
def f(a: int, b: Any, *c: Thing, d: "list[Any]", e: Other, g: 'Float[Array, "rows Any"]'): ...
class C:
    def m(self, x: typing.Any, y, z: "Callable[[Thing], int]") -> Any: ...
"""
    assert aliases_of_any([ast.parse(source)]) == {"Any", "Anything", "Thing", "Other"}
    assert share_of_any([ast.parse(source)]) == 100 * 6 / 8
