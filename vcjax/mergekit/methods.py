"""mergekit's methods in vcjax's terms, with mergekit's defaults and conventions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vcjax import merging
from vcjax.errors import MergeError

Shared = Mapping[str, Any]
"""Parameters that all models share."""

Each = Mapping[str, tuple[float, ...]]
"""Parameters with a number per model."""


@dataclass(frozen=True)
class Known:
    """One of mergekit's methods.

    Attributes:
        make: (shared parameters, parameters per model) -> the method.
        shared: defaults of the shared parameters.
        each: defaults of the parameters per model.
        base: "required", "optional" (task vectors if there is one), "first" (the base is
            the first of two models), or "none" (it is a model like the others).
        paper: where it is from.
    """

    make: Callable[[Shared, Each], "merging.MergeMethod"]
    shared: Mapping[str, Any]
    each: Mapping[str, float]
    base: str
    paper: str


def _one(name: str, values: tuple[float, ...]) -> Any:
    """A parameter per model as vcjax takes it: a number if they agree, else one each."""
    return values[0] if len(set(values)) == 1 else values


def _same(name: str, values: tuple[float, ...]) -> float:
    if len(set(values)) > 1:
        raise MergeError(
            f"{name} differs between models: {', '.join(map(str, values))}",
            hint=f"give all models the same {name}",
        )
    return values[0]


_ARITHMETIC = {"normalize": False, "lambda": 1.0, "rescale": False, "int8_mask": False}
_TIES = _ARITHMETIC | {"normalize": True}
_DARE = _ARITHMETIC | {"rescale": True}
_DELLA = _TIES | {"rescale": True}
_WEIGHT = {"weight": 1.0}
_DENSITY = {"weight": 1.0, "density": 1.0}


def _norm(shared: Shared) -> str | None:
    return "l1" if shared["rescale"] else None


def _ties(shared: Shared, each: Each) -> "merging.MergeMethod":
    density = _one("density", each["density"])
    return merging.ties(density, shared["lambda"], shared["normalize"], rounding="floor")


def _dare(make: Any) -> Callable[[Shared, Each], "merging.MergeMethod"]:
    def made(shared: Shared, each: Each) -> "merging.MergeMethod":
        density = _one("density", each["density"])
        return make(density, shared["lambda"], shared["normalize"], _norm(shared))

    return made


def _breadcrumbs(make: Any) -> Callable[[Shared, Each], "merging.MergeMethod"]:
    def made(shared: Shared, each: Each) -> "merging.MergeMethod":
        density, gamma = (_same(name, each[name]) for name in ("density", "gamma"))
        return make(density, gamma, shared["lambda"], shared["normalize"], rounding="floor")

    return made


def _della(make: Any) -> Callable[[Shared, Each], "merging.MergeMethod"]:
    def made(shared: Shared, each: Each) -> "merging.MergeMethod":
        density, epsilon = (_same(name, each[name]) for name in ("density", "epsilon"))
        scale, normalize = shared["lambda"], shared["normalize"]
        return make(density, epsilon, scale, normalize, _norm(shared))

    return made


_GAMMA = _DENSITY | {"gamma": 0.01}
_EPSILON = _DENSITY | {"epsilon": 0.15}
_LINEAR = {"normalize": True}
_SPHERE = {"normalize_weights": True, "eps": 1e-8}

KNOWN: dict[str, Known] = {
    "linear": Known(
        lambda s, e: merging.linear(s["normalize"]), _LINEAR, _WEIGHT, "none", "arXiv 2203.05482"
    ),
    "passthrough": Known(
        lambda s, e: merging.passthrough(e["scale"][0]), {}, {"scale": 1.0}, "none", "mergekit"
    ),
    "task_arithmetic": Known(
        lambda s, e: merging.task_arithmetic(s["lambda"], s["normalize"]),
        *(_ARITHMETIC, _WEIGHT, "required", "arXiv 2212.04089"),
    ),
    "ties": Known(_ties, _TIES, _DENSITY, "required", "arXiv 2306.01708"),
    "dare_linear": Known(
        _dare(merging.dare_linear), _DARE, _DENSITY, "required", "arXiv 2311.03099"
    ),
    "dare_ties": Known(_dare(merging.dare_ties), _DARE, _DENSITY, "required", "arXiv 2311.03099"),
    "breadcrumbs": Known(
        *(_breadcrumbs(merging.breadcrumbs), _ARITHMETIC, _GAMMA, "required", "arXiv 2312.06795")
    ),
    "breadcrumbs_ties": Known(
        _breadcrumbs(merging.breadcrumbs_ties),
        *(_ARITHMETIC, _GAMMA, "required", "arXiv 2312.06795"),
    ),
    "della": Known(_della(merging.della), _DELLA, _EPSILON, "required", "arXiv 2406.11617"),
    "della_linear": Known(
        _della(merging.della_linear), _DARE, _EPSILON, "required", "arXiv 2406.11617"
    ),
    "model_stock": Known(
        lambda s, e: merging.model_stock(s["filter_wise"]),
        *({"filter_wise": False}, {}, "required", "arXiv 2403.19522"),
    ),
    "sce": Known(
        lambda s, e: merging.sce(s["select_topk"]),
        *({"select_topk": 1.0, "int8_mask": False}, {}, "required", "arXiv 2408.07990"),
    ),
    "slerp": Known(lambda s, e: merging.slerp(s["t"]), {"t": None}, {}, "first", "Shoemake, 1985"),
    "nuslerp": Known(
        lambda s, e: merging.nuslerp(s["nuslerp_flatten"], s["nuslerp_row_wise"]),
        *({"nuslerp_flatten": True, "nuslerp_row_wise": False}, _WEIGHT, "optional", "mergekit"),
    ),
    "multislerp": Known(
        lambda s, e: merging.multislerp(s["normalize_weights"]),
        *(_SPHERE, _WEIGHT, "optional", "mergekit"),
    ),
    "karcher": Known(
        lambda s, e: merging.karcher(int(s["max_iter"]), s["tol"]),
        *({"max_iter": 10, "tol": 1e-5}, {}, "none", "Karcher, 1977"),
    ),
    "nearswap": Known(lambda s, e: merging.nearswap(s["t"]), {"t": None}, {}, "first", "mergekit"),
    "arcee_fusion": Known(lambda s, e: merging.arcee_fusion(), {}, {}, "first", "mergekit"),
    "ram": Known(
        lambda s, e: merging.ram(s["epsilon"]),
        *({"epsilon": 1e-5}, {}, "required", "arXiv 2601.13572"),
    ),
    "ramplus_tl": Known(
        lambda s, e: merging.ram_plus(s["r"], s["alpha"], s["epsilon"]),
        *({"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}, {}, "required", "arXiv 2601.13572"),
    ),
}
"""{mergekit's name: what it is here}."""


def known(name: str) -> Known:
    """One of mergekit's methods.

    Raises:
        MergeError: vcjax does not have it.
    """
    if name not in KNOWN:
        raise MergeError(
            f"vcjax does not run mergekit's method {name!r}",
            hint=f"it runs {', '.join(sorted(KNOWN))}",
        )
    return KNOWN[name]
