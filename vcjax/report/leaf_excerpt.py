"""One leaf, shown: a plain value as it is; of an array shape, dtype, statistics and a corner."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from vcjax.diffing import is_small, value_document, value_text
from vcjax.report.figures import format_bytes, format_number
from vcjax.report.lines import Line, escaped, line
from vcjax.report.table import Column, table
from vcjax.tree import LeafSpec, key_impl

CORNER = (4, 6)
"""Rows and columns of the corner of an array that are shown."""

RUN = 1 << 20
"""Elements that are looked at together, so that a large array is not copied as float64."""


def array_figures(array: np.ndarray) -> dict[str, Any]:
    """Statistics of the elements of an array, as of float64.

    Args:
        array: of numbers, in any dtype.

    Returns:
        {"elements", "zeros", "nan", "inf": counts; "norm": L2; "min", "max", "mean", "std"}, the
        last five of finite elements; None where there is none, and the last four of complex ones.
    """
    flat, is_complex = array.reshape(-1), array.dtype.kind == "c"
    counts, least, most = {"elements": flat.size, "zeros": 0, "nan": 0, "inf": 0}, [], []
    moments: list[tuple[int, float, float, float]] = []
    for start in range(0, flat.size, RUN):
        run = flat[start : start + RUN].astype(np.complex128 if is_complex else np.float64)
        finite = run[np.isfinite(run)]
        counts["zeros"] += int(np.count_nonzero(run == 0))
        counts["nan"] += int(np.count_nonzero(np.isnan(run)))
        counts["inf"] += int(np.count_nonzero(np.isinf(run)))
        if not finite.size:
            continue
        if not is_complex:
            least.append(float(finite.min()))
            most.append(float(finite.max()))
        center = float(np.abs(finite.mean())) if is_complex else float(finite.mean())
        spread = 0.0 if is_complex else float(((finite - center) ** 2).sum())
        moments.append((finite.size, center, spread, float((np.abs(finite) ** 2).sum())))
    if not moments:
        return {**counts, **dict.fromkeys(("norm", "min", "max", "mean", "std"))}
    norm = math.sqrt(sum(square for *_, square in moments))
    if is_complex:
        return {**counts, "norm": norm, **dict.fromkeys(("min", "max", "mean", "std"))}
    count = sum(size for size, *_ in moments)
    mean = sum(size * center for size, center, *_ in moments) / count
    spread = sum(part + size * (center - mean) ** 2 for size, center, part, _ in moments)
    ends = {"norm": norm, "min": min(least), "max": max(most)}
    return {**counts, **ends, "mean": mean, "std": math.sqrt(spread / count)}


def leaf_document(spec: LeafSpec, content: Any) -> dict[str, Any]:
    """A leaf as JSON types: dtype, shape, and value, statistics and corner where they make sense.

    Args:
        spec: what it is.
        content: the plain value, or the whole array.
    """
    found = {"dtype": spec.dtype, "shape": list(spec.shape)}
    if is_small(spec):
        found["value"] = value_document(content)
    if not spec.is_value and key_impl(spec.dtype) is None:
        found["stats"] = array_figures(content)
        found["corner"] = value_document(_corner(content))
    return found


def leaf_lines(path: str, spec: LeafSpec, content: Any) -> Iterator[Line]:
    """A leaf as text.

    Args:
        path: its leaf path.
        spec: what it is.
        content: the plain value, or the whole array.
    """
    if spec.is_value:
        yield from map(line, content.splitlines() if isinstance(content, str) else [repr(content)])
        return
    size = format_bytes(content.nbytes)
    yield line(f"{path or '(root)'}  {spec}  {size}")
    if key_impl(spec.dtype) is not None:
        return
    figures = array_figures(content)
    numbers = {name: figures[name] for name in ("norm", "min", "max", "mean", "std")}
    shown = {name: format_number(v) for name, v in numbers.items() if v is not None}
    shown |= {name: f"{figures[name]:,}" for name in ("zeros", "nan", "inf")}
    yield line(", ".join(f"{name} {text}" for name, text in shown.items()))
    if is_small(spec):
        yield line(escaped(value_text(content)))
        return
    corner = np.atleast_2d(_corner(content))
    yield line(f"the corner {_corner_index(content.shape)}:")
    cells = [[_number(element) for element in row] for row in corner]
    yield from table([Column(right=True)] * corner.shape[1], cells)


def _number(element: Any) -> str:
    if np.asarray(element).dtype.kind in "iub":
        return str(element)
    return f"{complex(element):.5g}" if np.iscomplexobj(element) else format_number(float(element))


def _index(shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    sizes = CORNER[-len(shape) :] if len(shape) < len(CORNER) else CORNER
    ends = [slice(0, min(n, size)) for n, size in zip(shape[-len(sizes) :], sizes, strict=True)]
    return (*[0] * (len(shape) - len(sizes)), *ends)


def _corner(array: np.ndarray) -> np.ndarray:
    """The first elements of the last two axes; all of an array without elements."""
    return array[_index(array.shape)] if array.ndim and array.size else array


def _corner_index(shape: tuple[int, ...]) -> str:
    """How the corner is written as an index: "[0, :4, :6]"."""
    parts = (f":{part.stop}" if isinstance(part, slice) else "0" for part in _index(shape))
    return f"[{', '.join(parts)}]"
