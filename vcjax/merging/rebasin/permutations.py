"""Which axes of a model's leaves may be permuted together without changing what it computes.

A `PermutationSpec` says it per leaf. It is derived from the program itself
(`permutation_spec`: labels of axes are followed through the jaxpr, so that MLPs,
CNNs, attention and residual streams of Linen, NNX or plain JAX need no table of
names), from the names of a plain chain of layers (`chain_spec`), or written down.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from vcjax import errors
from vcjax.merging.inputs import Tree, by_path, shape_of
from vcjax.merging.rebasin.axis_labels import Labels, follow
from vcjax.merging.tuning.sweep import is_array, split_arrays
from vcjax.tree import template


class Part(NamedTuple):
    """A factor of an axis: flattened images, `h·w·channels`, have three.

    Attributes:
        size: how many places it has.
        name: of the permutation that moves them; None if they must stay.
    """

    size: int
    name: str | None


@dataclass(frozen=True)
class PermutationSpec:
    """How permutations act on the leaves of a tree.

    Attributes:
        axes: `{leaf path: per axis its parts}`; leaves that no permutation moves
            may be left out.
    """

    axes: Mapping[str, tuple[tuple[Part, ...], ...]]

    @classmethod
    def of(cls, tree: Tree, names: Mapping[str, Sequence[str | None]]) -> "PermutationSpec":
        """A spec written down as `{leaf path: (name or None per axis)}`.

        Raises:
            MergeError: a path or a number of axes is not the tree's, or one name is
                given to axes of different sizes.

        Example:
            >>> import numpy as np
            >>> from vcjax import merging
            >>> tree = {"in": np.zeros((3, 4)), "out": np.zeros((4, 2))}
            >>> merging.PermutationSpec.of(tree, {"in": (None, "h"), "out": ("h", None)}).sizes
            {'h': 4}
        """
        leaves = by_path(tree)
        axes = {}
        for path, given in names.items():
            shape = shape_of(leaves[path]) if path in leaves else None
            if shape is None or len(shape) != len(given):
                raise errors.MergeError(
                    f"{tuple(given)} does not name the axes of {path!r}, "
                    + ("which is not in the tree" if shape is None else f"{list(shape)}"),
                    path=path,
                )
            axes[path] = tuple((Part(n, name),) for n, name in zip(shape, given, strict=True))
        spec = cls(axes)
        spec.check(tree)
        return spec

    @property
    def sizes(self) -> dict[str, int]:
        """`{permutation: how many places it moves}`."""
        found: dict[str, int] = {}
        for _, _, part in self._named():
            if part.name is not None:
                found.setdefault(part.name, part.size)
        return found

    def parts(self, path: str) -> tuple[Part, ...]:
        """All parts of a leaf in order."""
        return tuple(part for axis in self.axes[path] for part in axis)

    def places(self, name: str) -> list[tuple[str, int]]:
        """Where a permutation acts: leaf paths, and which of their parts."""
        return [(path, i) for path, i, part in self._named() if part.name == name]

    def check(self, tree: Tree) -> None:
        """Raises if the spec is not one of this tree.

        Raises:
            MergeError: a leaf is missing or of another shape, or sizes contradict.
        """
        leaves = by_path(tree)
        for path, axes in self.axes.items():
            shape = tuple(math.prod(part.size for part in axis) for axis in axes)
            if path not in leaves or shape_of(leaves[path]) != shape:
                found = list(shape_of(leaves[path])) if path in leaves else "no such leaf"
                raise errors.MergeError(
                    f"the permutation spec has {path!r} as {list(shape)}; the tree has {found}",
                    path=path,
                    hint="derive the spec from this model",
                )
        sizes = self.sizes
        for path, _, part in self._named():
            if part.name is not None and part.size != sizes[part.name]:
                raise errors.MergeError(
                    f"{part.name!r} is to permute {sizes[part.name]} and {part.size} places",
                    path=path,
                    hint="give axes of different sizes different names",
                )

    def _named(self) -> list[tuple[str, int, Part]]:
        return [(path, i, part) for path in self.axes for i, part in enumerate(self.parts(path))]


def permutation_spec(apply: Callable[..., Tree], tree: Tree, *inputs: Tree) -> PermutationSpec:
    """Derives from a program which permutations of a model leave its outputs as they are.

    Labels of axes are followed from the leaves through matrix products, convolutions,
    elementwise operations, norms, pooling, attention, reshapes and table look-ups to
    the outputs, whose axes stay, as those of the inputs do. Axes that meet an operation
    of another kind (a scan over layers, a slice) stay too: what is found is always an
    exact symmetry, though not always all of them. Leaves that the program does not use
    stay: an optimizer's state would no longer fit parameters that were permuted.

    Args:
        apply: `apply(tree, *inputs)`, for example
            `lambda params, x: model.apply({"params": params}, x)` (Linen) or
            `lambda state, x: nnx.merge(graphdef, state)(x)` (NNX).
        tree: the model, as it will be merged; only shapes matter.
        *inputs: example inputs, or their shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from vcjax import merging
        >>> tree = {"in": jnp.zeros((3, 4)), "out": jnp.zeros((4, 2))}
        >>> spec = merging.permutation_spec(lambda t, x: jnp.tanh(x @ t["in"]) @ t["out"], tree,
        ...                                 jnp.zeros((1, 3)))
        >>> spec.sizes
        {'in:1': 4}
    """
    parts = template(tree)
    arrays, rebuild = split_arrays(list(parts.targets.values()))

    def applied(arrays: list[jax.Array], inputs: tuple[Tree, ...]) -> Tree:
        leaves = dict(zip(parts.targets, rebuild(arrays), strict=True))
        return apply(parts.build(leaves), *inputs)

    closed = jax.make_jaxpr(applied)(arrays, inputs)
    labels = Labels()
    given = [labels.fresh(v.aval.shape) for v in closed.jaxpr.invars]
    results = follow(labels, closed.jaxpr, closed.consts, given)
    for fixed in (*given[len(arrays) :], *results):
        labels.freeze(*fixed)
    paths = [path for path, leaf in parts.targets.items() if is_array(leaf)]
    names: dict[int, str] = {}
    used = labels.used()
    axes: dict[str, tuple[tuple[Part, ...], ...]] = {}
    for path, leaf_axes in zip(paths, given[: len(arrays)], strict=True):
        found = []
        for number, label in enumerate(leaf_axes):
            factors = []
            for order, atom in enumerate(labels.expand(label)):
                mark = f"{path}:{number}" + (f".{order}" if order else "")
                free = atom in used and not labels.is_frozen(atom)
                name = names.setdefault(atom, mark) if free else None
                factors.append(Part(labels.size(atom), name))
            found.append(tuple(factors))
        axes[path] = tuple(found)
    moved = {path: a for path, a in axes.items() if any(part.name for axis in a for part in axis)}
    return PermutationSpec(moved)


def chain_spec(tree: Tree, layers: Sequence[str] | None = None) -> PermutationSpec:
    """The spec of a plain chain of layers from Flax's names: MLPs, and CNNs without skips.

    The outputs of every layer but the last, whose `kernel` is `[..., in, out]`, may be
    permuted, and with them `bias`, `scale`, `mean` and `var` of it and of the norms
    between it and the next. An input that is a multiple of the last output is a
    flattened image.

    Args:
        tree: the model.
        layers: paths of its modules in the order of application; by default all of them
            in natural order (`Conv_0`, `Conv_1`, `Dense_0`, `Dense_1`, …).

    Raises:
        MergeError: sizes do not make a chain.

    Example:
        >>> import numpy as np
        >>> from vcjax import merging
        >>> one = {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}
        >>> tree = {"hidden": one, "head": {"kernel": np.zeros((4, 2)), "bias": np.zeros(2)}}
        >>> merging.chain_spec(tree, ["hidden", "head"]).sizes
        {'hidden': 4}
    """
    shapes = {path: shape_of(leaf) for path, leaf in by_path(tree).items()}
    if layers is None:
        layers = sorted({path.rpartition("/")[0] for path in shapes}, key=_natural)
    own = {layer: [p for p in shapes if p.rpartition("/")[0] == layer] for layer in layers}
    if empty := [layer for layer, paths in own.items() if not paths]:
        raise errors.MergeError(f"there is no layer {empty[0]!r}", path=empty[0])
    axes: dict[str, tuple[tuple[Part, ...], ...]] = {}
    kernels = [layer for layer, paths in own.items() if f"{layer}/kernel" in paths]
    before: Part | None = None
    for layer, paths in own.items():
        kernel = f"{layer}/kernel"
        if kernel in paths:
            *window, wide, out = shapes[kernel]
            after = Part(out, None if layer == kernels[-1] else layer)
            parts = (Part(wide, None),) if before is None else _factored(kernel, wide, before)
            axes[kernel] = (*((Part(n, None),) for n in window), parts, (after,))
            before = after
        for path in paths:
            if path == kernel or before is None:
                continue
            if shapes[path] != (before.size,):
                raise errors.MergeError(
                    f"{path!r} {list(shapes[path])} does not follow {before.size} outputs",
                    path=path,
                    hint="give layers= in the order in which they are applied, or derive the "
                    "spec from the program with permutation_spec",
                )
            axes[path] = ((before,),)
    return PermutationSpec(axes)


def _factored(path: str, wide: int, before: Part) -> tuple[Part, ...]:
    """An input axis as the outputs of the layer before, maybe of a flattened image."""
    if wide % before.size:
        raise errors.MergeError(
            f"{path!r} takes {wide} inputs after {before.size} outputs",
            path=path,
            hint="give layers= in the order in which they are applied",
        )
    return (before,) if wide == before.size else (Part(wide // before.size, None), before)


def _natural(name: str) -> list[tuple[int, Any]]:
    return [(0, int(x)) if x.isdigit() else (1, x) for x in re.split(r"(\d+)", name) if x]
