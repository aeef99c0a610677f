"""What the compiled programs of selection and random methods do and do not."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vcjax import merging
from vcjax.merging.kernels import random_bits as counter
from vcjax.merging.kernels import top_k as selection

from ..compiled import scratch_bytes

SORTS = {"sort", "top_k", "approx_top_k", "argsort"}
SELECTING = {
    "ties": {},
    "breadcrumbs": {},
    "breadcrumbs_ties": {},
    "ties_whole": {},
    "localize_and_stitch": {},
    "pcb": {},
    "sce": {"select_topk": 0.5},
    "arcee_fusion": {},
    "adamerging": {"density": 0.2},
}
RANKING = {"della", "della_linear"}
"""They need every element's rank within its row, and not the k-th largest of a leaf."""


def primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all operations, also of those inside others."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, core.Jaxpr):
                yield from primitives(inner)


def program(name: str, shape: tuple[int, ...] = (40, 30), **arguments: Any) -> list[str]:
    method = getattr(merging, name)(**arguments)
    models = [{"w": jnp.zeros(shape), "b": jnp.zeros(shape[-1:])}] * 2
    base = models[0] if method.needs_base else None
    key = 0 if method.random else None
    numbers = None
    if method.statistics:  # of the kernel alone: the vector is averaged
        square = (shape[0], shape[0]) if "gram" in method.statistics else shape
        numbers = [{"w": jnp.ones(square)}] * 2
    traced = jax.make_jaxpr(lambda m, b: merging.merge(m, method, b, None, numbers, key))(
        models, base
    )
    return list(primitives(traced.jaxpr))


def test_the_search_sees_a_sort() -> None:
    """Also inside of jit, loops and branches, or the tests below would prove nothing."""

    def hidden(x: jax.Array) -> jax.Array:
        loop = lambda i, v: jax.lax.cond(i > 0, jnp.sort, lambda v: v, v)  # noqa: E731
        return jax.jit(lambda v: jax.lax.fori_loop(0, 3, loop, v))(x)

    assert SORTS & set(primitives(jax.make_jaxpr(hidden)(jnp.zeros(5)).jaxpr))
    assert SORTS & set(program("della"))


@pytest.mark.parametrize("name", sorted(set(merging.methods()) - {"keep", *RANKING}))
def test_no_method_sorts_a_leaf(name: str) -> None:
    assert not SORTS & set(program(name, **SELECTING.get(name, {})))


def test_both_searches_are_free_of_sorts() -> None:
    """That of accelerators is not in the program that is compiled for the CPU alone."""
    keys = jnp.zeros(1000, jnp.uint32)
    for search in (selection.by_histogram, selection.by_counting):
        traced = jax.make_jaxpr(search)(keys, jnp.int32(3))
        assert not SORTS & set(primitives(traced.jaxpr))


def test_selection_takes_a_bounded_share_of_the_leaf() -> None:
    """Scratch memory of the compiled choice: keys and masks, and no copy per pass or bin."""
    shape = (1024, 2048)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    compiled = jax.jit(lambda x: selection.top_mask(x, x.size // 5)).lower(x).compile()
    leaf = 4 * shape[0] * shape[1]
    assert scratch_bytes(compiled) < 3 * leaf


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ties_keeps_exactly_so_many_and_the_first_of_equals(dtype: Any) -> None:
    """Deltas of one size everywhere: which are kept is the tie rule alone."""
    base = {"w": jnp.zeros((8, 10), dtype)}
    model = {"w": jnp.ones((8, 10), dtype)}
    kept = np.asarray(merging.merge([model], merging.ties(0.2), base)["w"]).ravel() != 0
    assert kept.nonzero()[0].tolist() == list(range(16))
    every = merging.merge([model], merging.ties(0.2, tie_rule=">="), base)["w"]
    assert bool((every != 0).all())
    # over a whole model: earlier leaves first
    two = merging.ties_whole(0.6)
    out = merging.merge([{"a": model["w"], "b": model["w"]}], two, {"a": base["w"], "b": base["w"]})
    assert (np.asarray(out["a"]) != 0).sum() == 80
    assert (np.asarray(out["b"]).ravel() != 0).nonzero()[0].tolist() == list(range(16))


def placed(tree: Any, spec: P) -> Any:
    mesh = jax.make_mesh((4, 2), ("a", "b"), (AxisType.Auto,) * 2)
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), tree)


@pytest.mark.parametrize("spec", [P("a"), P("b", "a")])
@pytest.mark.parametrize("name", ["ties", "dare_linear", "della_linear"])
def test_how_leaves_are_sharded_changes_no_bit_of_the_choice(name: str, spec: P) -> None:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    random = np.random.default_rng(0)
    models = [{"w": random.integers(-3, 4, (16, 8)).astype("f")} for _ in range(2)]
    base = {"w": np.zeros((16, 8), "f")}
    method = getattr(merging, name)()
    key = 5 if method.random else None
    whole = merging.merge(models, method, base, key=key)["w"]
    spread = merging.merge(placed(models, spec), method, placed(base, spec), key=key)["w"]
    np.testing.assert_array_equal(np.asarray(whole) != 0, np.asarray(spread) != 0)
    np.testing.assert_allclose(whole, spread, rtol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_what_is_dropped_depends_on_path_model_and_place_alone(name: str) -> None:
    """Not on other leaves, on their order, or on how many rows are seen at once."""
    random = np.random.default_rng(1)
    leaf = {p: random.normal(size=(12, 7)).astype("f") for p in ("a", "b")}
    zero = {p: np.zeros_like(x) for p, x in leaf.items()}
    method = getattr(merging, name)()

    def merged(*paths: str) -> dict[str, Any]:
        model = {p: leaf[p] for p in paths}
        return merging.merge([model], method, {p: zero[p] for p in paths}, key=3)

    both = merged("a", "b")
    for path in ("a", "b"):
        np.testing.assert_array_equal(both[path], merged(path)[path])
    for path in ("b", "a"):
        np.testing.assert_array_equal(both[path], merged("b", "a")[path])
    # the transforms on slices of rows, as an executor that cuts leaves runs them
    words = counter.leaf_seed(jax.random.key(3), counter.path_words("a"))
    parts = []
    for row in (0, 5, 10):
        stack = merging.Stack(
            values=(jnp.asarray(leaf["a"][row : row + 5]),),
            base=jnp.asarray(zero["a"][row : row + 5]),
            weights=jnp.ones(1),
            seed=words,
            row=row,
        )
        for step in method.transforms:
            stack = step.apply(stack, ())
        parts.append(stack.values[0])
    sliced = np.concatenate(parts)
    np.testing.assert_array_equal(sliced != 0, both["a"] != 0)
    np.testing.assert_allclose(sliced, both["a"], rtol=1e-6)
