"""Merge methods as users write them: `average`, `ties(density=0.3)`. Nothing is evaluated."""

import ast
from collections.abc import Mapping
from typing import Any

from vcjax.cli.command import UsageError


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of a method.

    Args:
        text: a name, or a name and keyword arguments in parentheses. Values are
            literals of Python, or methods again.

    Raises:
        UsageError: it is anything else.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        method = _method(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"--method={text}: {error.args[0] if error.args else 'cannot be parsed'}",
            hint="write a method and its parameters: --method='ties(density=0.3)'",
        ) from error
    return method["name"], method["parameters"]


def _method(node: ast.expr) -> dict[str, Any]:
    if isinstance(node, ast.Name):
        return {"name": node.id, "parameters": {}}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"{ast.unparse(node)!r} is no merge method")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("give every parameter by name")
    parameters = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    return {"name": node.func.id, "parameters": parameters}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name | ast.Call):
        return _method(node)
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise ValueError("`**` has no meaning here")
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _value(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element) for element in node.elts]
    return ast.literal_eval(node)


def combined(text: str, extra: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of `--method` together with those of `--method_args`."""
    name, parameters = parse(text)
    return name, {**parameters, **extra}
