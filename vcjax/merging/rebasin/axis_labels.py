"""Labels of axes, followed through a jaxpr: which axes of its arguments are one and the same.

Every axis is a product of atoms, in row-major order; a reshape may factor an atom.
Atoms that an operation ties together are unified, those that it tells apart (slices,
inputs, outputs, whatever is not known here) are frozen. Permuting an atom that is not
frozen, wherever it occurs, then leaves the outputs as they are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core
from jax.typing import ArrayLike

Label = tuple[int, ...]
"""Atoms whose product an axis is; none for an axis of size 1."""

Axes = list[Label]


class Labels:
    """Atoms, what they were unified with, and which are frozen."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._bound: dict[int, Label] = {}
        self._frozen: set[int] = set()
        self._used: set[int] = set()

    def atom(self, size: int) -> int:
        """A new atom."""
        self._sizes.append(size)
        return len(self._sizes) - 1

    def fresh(self, shape: Sequence[int]) -> Axes:
        """New labels for the axes of an array."""
        return [(self.atom(n),) if n != 1 else () for n in shape]

    def stuck(self, shape: Sequence[int]) -> Axes:
        """New labels that are frozen."""
        axes = self.fresh(shape)
        self.freeze(*axes)
        return axes

    def size(self, atom: int) -> int:
        """How many places an atom has."""
        return self._sizes[atom]

    def expand(self, label: Label) -> Label:
        """The label in atoms that are bound to nothing."""
        out: list[int] = []
        for atom in label:
            out.extend(self.expand(self._bound[atom]) if atom in self._bound else (atom,))
        return tuple(out)

    def is_frozen(self, atom: int) -> bool:
        """Whether an atom must stay."""
        return atom in self._frozen

    def freeze(self, *labels: Label) -> None:
        """Freezes all atoms of these labels."""
        for label in labels:
            self._frozen.update(self.expand(label))

    def use(self, axes: Axes) -> None:
        """Notes that an operation saw these axes."""
        self._used.update(atom for label in axes for atom in label)

    def used(self) -> frozenset[int]:
        """The atoms that any operation saw."""
        return frozenset(self.expand(tuple(self._used)))

    def bind(self, atom: int, label: Label) -> None:
        """Makes an atom stand for others."""
        if atom in self._frozen:
            self.freeze(label)
        self._bound[atom] = label

    def unify(self, a: Label, b: Label) -> None:
        """Ties two labels of one size together, factoring atoms where they differ."""
        left, right = list(self.expand(a)), list(self.expand(b))
        while left and right:
            x, y = left.pop(0), right.pop(0)
            if x == y:
                continue
            if self.size(x) < self.size(y):
                x, y, left, right = y, x, right, left
            if self.size(x) > self.size(y):
                if self.size(x) % self.size(y):
                    self.freeze((x, y), tuple(left), tuple(right))
                    return
                rest = self.atom(self.size(x) // self.size(y))
                first = self.atom(self.size(y))
                self.bind(x, (first, rest))
                # What was factored may stand elsewhere in what is still to be tied.
                left = [rest, *self.expand(tuple(left))]
                right = list(self.expand(tuple(right)))
                x = first
            self.bind(x, (y,))
            left, right = list(self.expand(tuple(left))), list(self.expand(tuple(right)))
        self.freeze(tuple(left), tuple(right))


Rule = Callable[[Labels, core.JaxprEqn, list[Axes]], list[Axes]]

ONE_BY_ONE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge
    gt integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter
    not optimization_barrier or pow real reduce_precision rem round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh
    sqrt square stop_gradient sub tan tanh xor
"""
ELEMENTWISE = frozenset(ONE_BY_ONE.split())
"""Operations on single elements."""

KINDS = ("sum", "prod", "max", "min", "and", "or", "xor")
SYMMETRIC = frozenset(f"reduce_{kind}" for kind in KINDS)
"""Reductions to which the order of elements is nothing."""

CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat", "remat2", "closed_call"), "jaxpr"),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "core_call"), "call_jaxpr"),
}
"""Operations that call another jaxpr, and the parameter that holds it."""


def follow(
    labels: Labels, jaxpr: core.Jaxpr, consts: Sequence[ArrayLike], given: Sequence[Axes]
) -> list[Axes]:
    """The labels of a jaxpr's results, from those of its arguments."""
    known: dict[Any, Axes] = dict(zip(jaxpr.invars, given, strict=True))
    known |= {v: labels.stuck(np.shape(c)) for v, c in zip(jaxpr.constvars, consts, strict=True)}

    def read(v: core.Var | core.Literal) -> Axes:
        return labels.stuck(np.shape(v.val)) if isinstance(v, core.Literal) else known[v]

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        arguments = [read(v) for v in eqn.invars]
        if name in CALLS and CALLS[name] in eqn.params:
            inner = eqn.params[CALLS[name]]
            body, constants = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            results = follow(labels, body, constants, arguments)
        else:
            for axes in arguments:
                labels.use(axes)
            results = rule_of(name)(labels, eqn, arguments)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def rule_of(name: str) -> Rule:
    """What an operation does to labels."""
    if name in ELEMENTWISE:
        return elementwise
    if name.startswith("reduce_window_"):
        return window
    if name in SYMMETRIC:
        return reduction
    return RULES.get(name, unknown)


def shapes_of(variables: Sequence[core.Var | core.Literal]) -> list[tuple[int, ...]]:
    """The shapes of an equation's arguments or results."""
    return [tuple(getattr(v.aval, "shape", ())) for v in variables]


def unknown(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Everything stays."""
    for axes in given:
        labels.freeze(*axes)
    return [labels.stuck(shape) for shape in shapes_of(eqn.outvars)]


def elementwise(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Axes at the same position are the same; those of size 1 and scalars are spread."""
    shapes, outs = shapes_of(eqn.invars), shapes_of(eqn.outvars)
    if len(outs) > 1 and outs == shapes:
        return given
    if any(len(shape) not in (0, len(outs[0])) for shape in shapes):
        return unknown(labels, eqn, given)
    result: Axes = []
    for axis, n in enumerate(outs[0]):
        same = [a[axis] for a, s in zip(given, shapes, strict=True) if s and s[axis] == n != 1]
        for other in same[1:]:
            labels.unify(same[0], other)
        result.append(same[0] if same else ())
    return [result]


def pass_where(labels: Labels, axes: Axes, shape: Sequence[int], passes: Sequence[bool]) -> Axes:
    """The labels of axes that an operation leaves alone; the others stay."""
    out = []
    for label, n, whole in zip(axes, shape, passes, strict=True):
        if not whole:
            labels.freeze(label)
        out.append(label if whole else labels.stuck((n,))[0])
    return out


def reduction(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """A sum, a maximum: the order along the axes that vanish does not matter."""
    gone = set(eqn.params["axes"])
    return [[a for i, a in enumerate(axes) if i not in gone] for axes in given[: len(eqn.outvars)]]


def position(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """The place of a maximum, which must stay."""
    labels.freeze(*(given[0][i] for i in eqn.params["axes"]))
    return reduction(labels, eqn, given)


def window(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Pooling: axes with a window of 1 pass."""
    p, (shape,) = eqn.params, shapes_of(eqn.outvars)
    dilations = zip(p["base_dilation"], p["window_dilation"], strict=True)
    trivial = [
        n == 1 and stride == 1 and tuple(pad) == (0, 0) and dilation == (1, 1)
        for n, stride, pad, dilation in zip(
            p["window_dimensions"], p["window_strides"], p["padding"], dilations, strict=True
        )
    ]
    return [pass_where(labels, given[0], shape, trivial)]


def contraction(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """A matrix product: contracted and batch axes are the same on both sides."""
    left, right = given
    (left_in, right_in), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    for i, j in [*zip(left_in, right_in, strict=True), *zip(left_batch, right_batch, strict=True)]:
        labels.unify(left[i], right[j])
    free_left = [a for i, a in enumerate(left) if i not in (*left_in, *left_batch)]
    free_right = [a for j, a in enumerate(right) if j not in (*right_in, *right_batch)]
    return [[*(left[i] for i in left_batch), *free_left, *free_right]]


def convolution(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Channels are mixed as by a matrix; depthwise, they stay what they are."""
    image, kernel = given
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    at, k, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    (shape,) = shapes_of(eqn.outvars)
    depthwise = groups == shapes_of(eqn.invars)[0][at[1]] == shape[out[1]]
    if eqn.params["batch_group_count"] != 1 or not (groups == 1 or depthwise):
        return unknown(labels, eqn, given)
    labels.unify(image[at[1]], kernel[k[0]] if groups != 1 else kernel[k[1]])
    labels.freeze(*(image[i] for i in at[2:]), *(kernel[i] for i in k[2:]))
    result = labels.stuck(shape)
    result[out[0]], result[out[1]] = image[at[0]], kernel[k[0]]
    return [result]


def transpose(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Axes in another order."""
    return [[given[0][i] for i in eqn.params["permutation"]]]


def squeeze(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Without axes of size 1."""
    gone = eqn.params["dimensions"]
    return [[a for i, a in enumerate(given[0]) if i not in gone]]


def broadcast(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """New axes repeat what there is, in any order."""
    (shape,), before = shapes_of(eqn.outvars), shapes_of(eqn.invars)[0]
    result = labels.fresh(shape)
    for i, j in enumerate(eqn.params["broadcast_dimensions"]):
        if before[i] == shape[j]:
            result[j] = given[0][i]
    return [result]


def reshape(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Axes are joined and factored, in blocks of the same number of elements."""
    before, (shape,) = shapes_of(eqn.invars)[0], shapes_of(eqn.outvars)
    if eqn.params.get("dimensions") is not None or math.prod(shape) == 0:
        return unknown(labels, eqn, given)
    result = labels.fresh(shape)
    i = j = 0
    while i < len(before) and j < len(shape):
        label, n, m, first = given[0][i], before[i], shape[j], j
        i, j = i + 1, j + 1
        while n != m:
            if n < m:
                label, n, i = (*label, *given[0][i]), n * before[i], i + 1
            else:
                m, j = m * shape[j], j + 1
        if j == first + 1:
            result[first] = label
        else:
            labels.unify(label, tuple(a for axis in result[first:j] for a in axis))
    return [result]


def table(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Rows of a table, such as an embedding: what is not indexed passes."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if numbers.operand_batching_dims:
        return unknown(labels, eqn, given)
    operand, indices = given
    (whole, _), (shape,) = shapes_of(eqn.invars), shapes_of(eqn.outvars)
    labels.freeze(indices[-1])
    result = labels.stuck(shape)
    kept = [d for d in range(len(whole)) if d not in numbers.collapsed_slice_dims]
    places = dict(zip(kept, numbers.offset_dims, strict=True))
    for d, label in enumerate(operand):
        if d in places and d not in numbers.start_index_map and sizes[d] == whole[d]:
            result[places[d]] = label
        else:
            labels.freeze(label)
    rows = [at for at in range(len(shape)) if at not in numbers.offset_dims]
    for at, label in zip(rows, indices[:-1], strict=True):
        result[at] = label
    return [result]


def counting(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """0, 1, 2, … along one axis, which stays."""
    (shape,) = shapes_of(eqn.outvars)
    result = labels.fresh(shape)
    labels.freeze(result[eqn.params["dimension"]])
    return [result]


def along(*names: str) -> Rule:
    """Operations along some axes, which stay; the others pass."""

    def rule(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
        found = next(eqn.params[name] for name in names if name in eqn.params)
        used = {found} if isinstance(found, int) else set(found)
        results = []
        for shape in shapes_of(eqn.outvars):
            passes = [i not in used for i in range(len(shape))]
            results.append(pass_where(labels, given[0], shape, passes))
        return results

    return rule


def cut(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """A slice or padding: axes of which nothing is lost or gained pass."""
    before, (shape,) = shapes_of(eqn.invars)[0], shapes_of(eqn.outvars)
    # Negative and interior padding can cancel, so padding is looked at itself.
    config = eqn.params.get("padding_config") or [(0, 0, 0)] * len(shape)
    passes = [
        n == m and tuple(pad) == (0, 0, 0) for n, m, pad in zip(before, shape, config, strict=True)
    ]
    return [pass_where(labels, given[0], shape, passes)]


def joined(labels: Labels, eqn: core.JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Arrays one after the other along an axis, which stays; the others are the same."""
    axis, (shape,) = eqn.params["dimension"], shapes_of(eqn.outvars)
    for axes in given[1:]:
        for i, label in enumerate(axes):
            if i != axis:
                labels.unify(given[0][i], label)
    labels.freeze(*(axes[axis] for axes in given))
    return [pass_where(labels, given[0], shape, [i != axis for i in range(len(shape))])]


RULES: dict[str, Rule] = {
    "argmax": position,
    "argmin": position,
    "broadcast_in_dim": broadcast,
    "concatenate": joined,
    "conv_general_dilated": convolution,
    "cumsum": along("axis"),
    "cumprod": along("axis"),
    "cummax": along("axis"),
    "cummin": along("axis"),
    "dot_general": contraction,
    "dynamic_slice": cut,
    "gather": table,
    "iota": counting,
    "pad": cut,
    "reshape": reshape,
    "rev": along("dimensions"),
    "slice": cut,
    "split": along("axis"),
    "squeeze": squeeze,
    "transpose": transpose,
}
